"""The latents of a store's rows at a site, sparse, with the sequence and token of each row.

Shapes: N rows, D d_in, F d_sae, S sequences.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from raysae.activations.splits import hash_of
from raysae.activations.writer import SiteRows
from raysae.atlas.library.encoding import latents_of
from raysae.errors import UserError
from raysae.sites import Site

if TYPE_CHECKING:
    import pyarrow as pa

    from raysae.activations import Store
    from raysae.activations.manifest import ShardEntry
    from raysae.sae import SAE

COLUMNS = ["sequence", "token_index", "token_id"]


@dataclass(frozen=True)
class SiteLatents:
    """The latents of some rows of a site, ordered by sequence and token."""

    active_NF: Any
    """``[N, F]``, a sparse matrix (scipy's CSR) of float64, positive where a latent is active."""
    sequence: NDArray[np.int64]
    token_index: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.sequence)

    def take(self, rows: NDArray[Any]) -> "SiteLatents":
        """The rows of these numbers, in their order."""
        return SiteLatents(self.active_NF[rows], self.sequence[rows], self.token_index[rows])

    def fires(self) -> NDArray[np.int64]:
        """On how many rows each latent is active: ``[F]``."""
        return np.bincount(self.active_NF.indices, minlength=self.active_NF.shape[1])

    def sequence_means(self) -> tuple[NDArray[np.int64], Any]:
        """The sequences ``[S]`` and each latent's mean over the rows of each: ``[S, F]``, sparse."""
        from scipy.sparse import csr_array

        sequences, number, count = np.unique(self.sequence, return_inverse=True, return_counts=True)
        weights = (1 / count[number], (number, np.arange(len(self))))
        pooling_SN = csr_array(weights, shape=(len(sequences), len(self)))
        return sequences, csr_array(pooling_SN @ self.active_NF)

    @classmethod
    def joined(cls, parts: "Sequence[SiteLatents]") -> "SiteLatents":
        """The rows of all parts, ordered by sequence and token."""
        from scipy.sparse import csr_array, vstack

        sequence = np.concatenate([part.sequence for part in parts])
        token = np.concatenate([part.token_index for part in parts])
        active_NF = csr_array(vstack([part.active_NF for part in parts], format="csr"))
        return cls(active_NF, sequence, token).take(np.lexsort((token, sequence)))


def row_parts(
    store: "Store", site: Site, splits: Sequence[str], most_rows: int,
    only: NDArray[np.int64] | None = None,
) -> Iterator[SiteRows]:  # fmt: skip
    """The rows of whole sequences of a site, about ``most_rows`` at most, a shard's at a time.

    Shards are read in order, and of the last one the sequences that come first by their hash, so that
    sites whose rows are of the same tokens give the same rows; with ``only`` none but these sequences'.
    Raises UserError when a file is damaged.
    """
    left = most_rows
    for split in splits:
        for shard in store.shards(site, split):
            if left <= 0:
                return
            table = _columns(store, shard, split)
            sequence, *tokens = (table[name].to_numpy().copy() for name in COLUMNS)
            wanted = np.ones(len(sequence), bool) if only is None else np.isin(sequence, only)
            if not wanted.any():
                continue
            wanted[wanted] = _first_sequences(sequence[wanted], left)
            rows = SiteRows(store.rows(store.segments(shard, split)), sequence, *tokens)
            left -= int(wanted.sum())
            yield rows if wanted.all() else rows.take(wanted)


def _columns(store: "Store", shard: "ShardEntry", split: str) -> "pa.Table":
    if store.uri is None:
        return store.read(shard, split, COLUMNS)
    return store.reader.table(shard, split, COLUMNS)  # a checksum would be of the whole file


def _first_sequences(sequence: NDArray[np.int64], most: int) -> NDArray[np.bool_]:
    """Which rows are of the sequences that come first by their hash, up to ``most`` rows; one sequence
    at least."""
    if len(sequence) <= most:
        return np.ones(len(sequence), bool)
    found, number, count = np.unique(sequence, return_inverse=True, return_counts=True)
    order = np.argsort(hash_of(found), kind="stable")
    kept = np.zeros(len(found), bool)
    kept[order] = np.cumsum(count[order]) <= most
    kept[order[0]] = True
    return kept[number]


def encoded(sae: "SAE", rows: SiteRows) -> SiteLatents:
    """The latents of rows, in order of sequence and token."""
    from scipy.sparse import csr_array

    found = latents_of(sae, rows)
    values = (found.values.double().numpy(), tuple(found.indices.numpy()))
    active_NF = csr_array(values, shape=(len(found), found.d_sae))
    order = np.lexsort((rows.token_index, rows.sequence))
    return SiteLatents(active_NF, rows.sequence, rows.token_index).take(order)


def read_latents(
    store: "Store", site: Site, sae: "SAE", splits: Sequence[str], most_rows: int,
    alive: Callable[[], None] = lambda: None, only: NDArray[np.int64] | None = None,
) -> SiteLatents:  # fmt: skip
    """The latents of a site's rows, about ``most_rows`` at most (see ``row_parts``).

    Raises UserError when the splits have no row there.
    """
    parts = []
    for rows in row_parts(store, site, splits, most_rows, only):
        parts.append(encoded(sae, rows))
        alive()
    if not parts:
        raise UserError(f"{store.place}: {site} has no {' or '.join(splits)} rows")
    return SiteLatents.joined(parts)


def common_rows(
    first: SiteLatents, second: SiteLatents, by_sequence: bool = False
) -> tuple[SiteLatents, SiteLatents]:
    """The rows of the same tokens (with ``by_sequence``: of the same sequences) in both, in one order.

    Where a token has several rows, the first is paired with the first, and so on.
    """
    keys = [_keys(one, by_sequence) for one in (first, second)]
    _, number = np.unique(np.concatenate(keys), axis=0, return_inverse=True)
    one, other = np.split(number.reshape(-1), [len(first)])
    _, one_rows, other_rows = np.intersect1d(one, other, assume_unique=True, return_indices=True)
    return first.take(one_rows), second.take(other_rows)


def _keys(latents: SiteLatents, by_sequence: bool) -> NDArray[np.int64]:
    """Sequence, token and number among the rows of the same token, of each row: ``[N, 3]``."""
    token = np.zeros(len(latents), np.int64) if by_sequence else latents.token_index
    keys = np.stack([latents.sequence, token.astype(np.int64)], axis=1)
    fresh = np.ones(len(keys), bool)
    fresh[1:] = (keys[1:] != keys[:-1]).any(axis=1)
    starts = np.flatnonzero(fresh)
    occurrence = np.arange(len(keys)) - np.repeat(starts, np.diff(np.append(starts, len(keys))))
    return np.column_stack([keys, occurrence])
