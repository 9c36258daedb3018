"""The selections: what stays, and what becomes zero."""

import torch

from raysae.sae.batch_topk import batch_top_k
from raysae.sae.topk import top_k


def test_top_k_keeps_the_largest_and_drops_negatives():
    row = torch.tensor([[3.0, -1.0, 2.0, -5.0]])
    assert top_k(row, 1).tolist() == [[3.0, 0, 0, 0]]
    assert top_k(row, 3).tolist() == [[3.0, 0, 2.0, 0]]
    assert top_k(row, 4).tolist() == [[3.0, 0, 2.0, 0]]


def test_batch_top_k_spends_its_latents_where_they_are_largest():
    rows = torch.tensor([[3.0, 2.5, 2.0], [1.0, -4.0, 0.5]])
    assert batch_top_k(rows, 1).tolist() == [[3.0, 2.5, 0], [0, 0, 0]]
    assert batch_top_k(rows, 2).tolist() == [[3.0, 2.5, 2.0], [1.0, 0, 0]]
    assert batch_top_k(rows, 3).tolist() == [[3.0, 2.5, 2.0], [1.0, 0, 0.5]]
