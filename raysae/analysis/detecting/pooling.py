"""A site's activations and features pooled over the rows of each sequence, some sequences at a time.

Shapes: R rows, S sequences of a block, D d_in, F d_sae.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raysae.errors import UserError
from raysae.sites import Site

if TYPE_CHECKING:
    from raysae.activations import Store
    from raysae.activations.manifest import ShardEntry
    from raysae.sae import SAE

VALUES = 2**24
"""Values of features in memory at a time, for each of sums, maxima and the features of some rows."""


@dataclass(frozen=True)
class Block:
    """Some sequences of a site."""

    rows: NDArray[np.int64]
    """The place of each among the sequences asked for."""
    raw_SD: NDArray[np.float32]
    """The mean activation."""
    mean_SF: NDArray[np.float32]
    """Each feature's mean activation over the sequence's rows."""
    max_SF: NDArray[np.float32]
    """Each feature's largest activation."""


@torch.no_grad()
def pooled_blocks(
    store: "Store", site: Site, sae: "SAE", sequences: NDArray[np.int64], splits: Sequence[str],
    alive: Callable[[], None],
) -> Iterator[Block]:  # fmt: skip
    """The blocks of the sequences (sorted numbers) that have rows at the site, in the store's order.

    Memory does not grow with their number. Raises UserError when a file is damaged, or a sequence's rows
    lie in several files.
    """
    seen = np.zeros(len(sequences), bool)
    for split in splits:
        for shard in store.shards(site, split):
            sequence_R = _sequences(store, shard, split)
            place_R = np.searchsorted(sequences, sequence_R).clip(max=len(sequences) - 1)
            chosen = np.flatnonzero(sequences[place_R] == sequence_R)
            if not len(chosen):
                continue
            chosen = chosen[np.argsort(place_R[chosen], kind="stable")]
            places = np.unique(place_R[chosen])
            if seen[places].any():
                number = sequences[places[seen[places]][0]]
                raise UserError(
                    f"{store.place}: the rows of sequence {number} at {site} lie in several files; "
                    "extract the store again"
                )
            seen[places] = True
            rows_RD = store.rows(store.segments(shard, split))[torch.from_numpy(chosen)]
            yield from _blocks(rows_RD, place_R[chosen], sae, alive)


def _sequences(store: "Store", shard: "ShardEntry", split: str) -> NDArray[np.int64]:
    columns = ["sequence"]
    if store.uri is None:
        return store.read(shard, split, columns)["sequence"].to_numpy()
    return store.reader.table(shard, split, columns)["sequence"].to_numpy()


def _blocks(
    rows_RD: Tensor, place_R: NDArray[np.int64], sae: "SAE", alive: Callable[[], None]
) -> Iterator[Block]:
    """The blocks of rows that are ordered by the place of their sequence."""
    places, start = np.unique(place_R, return_index=True)
    ends = [*start[1:].tolist(), len(place_R)]
    together = max(VALUES // sae.config.d_sae, 1)
    for first in range(0, len(places), together):
        last = min(first + together, len(places))
        rows = slice(int(start[first]), ends[last - 1])
        number_R = np.searchsorted(places, place_R[rows]) - first
        yield _pooled(rows_RD[rows], number_R, places[first:last], sae)
        alive()


def _pooled(
    rows_RD: Tensor, number_R: NDArray[np.int64], places: NDArray[np.int64], sae: "SAE"
) -> Block:
    """The block of rows that are ordered by ``number_R``, the number of their sequence in it."""
    S, F = len(places), sae.config.d_sae
    raw_SD = np.zeros((S, rows_RD.shape[1]), np.float32)
    mean_SF, max_SF = np.zeros((S, F), np.float32), np.zeros((S, F), np.float32)
    together = max(VALUES // F, 1)
    for first in range(0, len(rows_RD), together):
        x_RD = rows_RD[first : first + together]
        numbers, starts = np.unique(number_R[first : first + together], return_index=True)
        features_RF = sae.encode(x_RD.to(sae.W_dec)).float().cpu().numpy()
        raw_SD[numbers] += np.add.reduceat(x_RD.float().numpy(), starts, axis=0)
        mean_SF[numbers] += np.add.reduceat(features_RF, starts, axis=0)
        largest_SF = np.maximum.reduceat(features_RF, starts, axis=0)
        max_SF[numbers] = np.maximum(max_SF[numbers], largest_SF)
    count_S = np.bincount(number_R, minlength=S)[:, None].astype(np.float32)
    return Block(places, raw_SD / count_S, mean_SF / count_S, max_SF)
