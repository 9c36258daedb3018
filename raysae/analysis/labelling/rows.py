"""A site's rows with the tokens that they come from, and their active latents, a chunk at a time.

Shapes: N rows of a chunk, A active latents of all rows, D d_in, F d_sae.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raysae.errors import UserError

if TYPE_CHECKING:
    from raysae.activations import Store
    from raysae.activations.manifest import ShardEntry
    from raysae.sae import SAE
    from raysae.sites import Site

COLUMNS = ["sequence", "token_index", "token_id"]
CHUNK_ROWS = 8192
"""Rows that are encoded at a time, at most."""
CHUNK_VALUES = 2**22
"""Values of dense latents that are in memory at a time."""


@dataclass(frozen=True)
class Rows:
    """Some rows of a site."""

    activation_ND: Tensor
    sequence: NDArray[np.int64]
    token_index: NDArray[np.int64]
    token_id: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.sequence)

    def taken(self, which: Any) -> "Rows":
        """The rows of a slice, or of an array of numbers."""
        index = which if isinstance(which, slice) else torch.from_numpy(which)
        return Rows(
            self.activation_ND[index], self.sequence[which], self.token_index[which],
            self.token_id[which],
        )  # fmt: skip

    @classmethod
    def joined(cls, parts: "Sequence[Rows]") -> "Rows":
        """The rows of all parts, in their order."""
        columns = [np.concatenate([getattr(part, name) for part in parts]) for name in COLUMNS]
        return cls(torch.cat([part.activation_ND for part in parts]), *columns)


@dataclass(frozen=True)
class Chunk:
    """Rows with their latents."""

    rows: Rows
    features_NF: Tensor
    """Dense, float32, on the CPU."""
    row: NDArray[np.int64]
    """``[A]``: the row of each active latent, in order."""
    feature: NDArray[np.int64]
    """``[A]``"""
    value: NDArray[np.float32]
    """``[A]``, positive."""


def read_rows(
    store: "Store", site: "Site", splits: Sequence[str], most: int, together: int = CHUNK_ROWS
) -> Iterator[Rows]:
    """The rows of the splits in order, ``together`` at a time, of whole shards until there are ``most``.

    Each split gives its share of ``most``. Raises UserError when a file was altered, or there is no row.
    """
    waiting: list[Rows] = []
    held = 0
    for split, shard in _shards(store, site, splits, most):
        for part in _pieces(_of_shard(store, shard, split), together):
            waiting, held = [*waiting, part], held + len(part)
            if held >= together:
                joined = Rows.joined(waiting)
                yield joined.taken(slice(0, together))
                waiting, held = [joined.taken(slice(together, None))], held - together
    if held:
        yield Rows.joined(waiting)


def _pieces(rows: Rows, together: int) -> Iterator[Rows]:
    for start in range(0, len(rows), together):
        yield rows.taken(slice(start, start + together))


def _shards(
    store: "Store", site: "Site", splits: Sequence[str], most: int
) -> "Iterator[tuple[str, ShardEntry]]":
    counts = {split: getattr(store.entry(site).rows, split) for split in splits}
    total = sum(counts.values())
    if not total:
        raise UserError(
            f"{store.place}: {site} has no rows in {' or '.join(splits)}; name other splits with "
            "labels.splits"
        )
    for split in splits:
        share, read = min(most / total, 1.0) * counts[split], 0
        for shard in store.shards(site, split):
            if read >= share:
                break
            read += getattr(shard.rows, split)
            yield split, shard


def _of_shard(store: "Store", shard: "ShardEntry", split: str) -> Rows:
    if store.uri is None:
        table = store.read(shard, split, COLUMNS)
    else:  # a checksum would be of the whole file
        table = store.reader.table(shard, split, COLUMNS)
    columns = [table[name].to_numpy().astype(np.int64, copy=False) for name in COLUMNS]
    return Rows(store.rows(store.segments(shard, split)), *columns)


def rows_together(d_sae: int) -> int:
    """Rows whose dense latents are in memory at a time."""
    return max(1, min(CHUNK_ROWS, CHUNK_VALUES // d_sae))


@torch.no_grad()
def encoded(sae: "SAE", rows: Rows) -> Chunk:
    """The latents of rows by their SAE."""
    features_NF = sae.encode(rows.activation_ND.to(sae.W_dec)).float().cpu()
    active_A2 = features_NF.nonzero()
    row, feature = active_A2[:, 0], active_A2[:, 1]
    value = features_NF[row, feature]
    return Chunk(rows, features_NF, row.numpy(), feature.numpy(), value.numpy())
