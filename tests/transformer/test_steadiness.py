"""Rows that change with padding, or with the other texts of a batch."""

import pytest
import torch

from raysae.errors import UserError
from raysae.transformer.steadiness import check_same_rows, settle_padding

IDS = torch.arange(1, 37).reshape(3, 12)
EMBEDDING = torch.randn(40, 8, generator=torch.Generator().manual_seed(0))


def runs(mix):
    """Rows of each text; ``mix`` changes the padded batch ``[B, T, D]``."""

    def run(texts):
        width = max(map(len, texts))
        ids = torch.stack([torch.cat([t, t.new_zeros(width - len(t))]) for t in texts])
        rows = mix(EMBEDDING[ids])
        return [row[: len(text)] for row, text in zip(rows, texts, strict=True)]

    return run


def attends_to_all(rows):
    return rows + rows.mean(dim=1, keepdim=True)


def test_texts_of_several_lengths_run_together_where_that_changes_nothing():
    assert settle_padding(runs(lambda rows: rows), IDS, torch.float32)


def test_a_model_that_attends_to_padding_runs_over_equal_lengths():
    assert not settle_padding(runs(attends_to_all), IDS, torch.float32)


def test_a_model_that_cannot_run_over_padding_runs_over_equal_lengths():
    def run(texts):
        return list(EMBEDDING[torch.stack(texts)])  # fails for several lengths

    assert not settle_padding(run, IDS, torch.float32)


def test_a_model_that_mixes_texts_is_refused_with_the_figure():
    run = runs(lambda rows: rows + rows.mean(dim=0, keepdim=True))
    with pytest.raises(UserError, match=r"change with the other texts.*by up to \d+"):
        settle_padding(run, IDS, torch.float32)


def test_a_random_model_is_refused():
    with pytest.raises(UserError, match="without randomness"):
        settle_padding(runs(lambda rows: rows + torch.randn_like(rows)), IDS, torch.float32)


def test_the_first_batch_is_held_to_its_dtype():
    rows = torch.randn(50, 64)
    check_same_rows(rows, rows * (1 + 1e-5), 4, torch.float32)
    check_same_rows(rows, rows * 1.02, 4, torch.bfloat16)
    for dtype, factor in ((torch.float32, 1.01), (torch.bfloat16, 1.5)):
        with pytest.raises(UserError, match="alone and in a batch of 4 texts differ"):
            check_same_rows(rows, rows * factor, 4, dtype)
