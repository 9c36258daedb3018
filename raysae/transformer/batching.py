"""Sequences in batches of similar length, and their rows back in the order of the sequences.

Shapes: N rows, D d_in.
"""

from collections.abc import Iterator, Sequence, Sized

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raysae.activations.writer import SiteRows
from raysae.transformer.sequence import TokenSequence


def length_batches(
    sequences: Sequence[Sized], tokens: int, padding: bool = True
) -> Iterator[list[int]]:
    """The indices of the sequences sorted by length, in batches of at most ``tokens`` tokens, padding
    included. A longer sequence is a batch of its own. Without ``padding``, all of a batch have one
    length."""
    batch: list[int] = []
    for i in sorted(range(len(sequences)), key=lambda i: (len(sequences[i]), i)):
        full = (len(batch) + 1) * len(sequences[i]) > tokens
        longer = batch and len(sequences[batch[0]]) < len(sequences[i])
        if batch and (full or (longer and not padding)):
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


def places_in_batch(places: list[NDArray[np.int64]]) -> tuple[Tensor, Tensor]:
    """The row and column index of every place ``places`` of each text, in a batch."""
    row = np.repeat(np.arange(len(places)), [len(place) for place in places])
    return torch.from_numpy(row), torch.from_numpy(np.concatenate(places))


def in_order(
    activation_ND: Tensor,
    order: list[int],
    sequences: Sequence[TokenSequence],
    places: list[NDArray[np.int64]],
) -> SiteRows:
    """A site's rows ``[N, D]``, put back from ``order``, in which the sequences ran, to their own."""
    ran = np.repeat(np.array(order), [len(places[i]) for i in order])
    activation_ND = activation_ND[torch.from_numpy(np.argsort(ran, kind="stable"))]
    counts = [len(place) for place in places]
    token_id = [s.token_id[place] for s, place in zip(sequences, places, strict=True)]
    return SiteRows(
        activation_ND,
        np.repeat(np.array([s.sequence for s in sequences], dtype=np.int64), counts),
        np.concatenate(places).astype(np.int32),
        np.concatenate(token_id).astype(np.int32),
    )
