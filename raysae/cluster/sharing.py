"""One copy of a site's rows in memory for all trials of a node: large sites are read by Ray Data.

A site is read in pieces, by several tasks on all nodes at once. The rows are in Ray's object store;
every trial maps the memory of its node, without a copy, and a node that lacks a piece pulls it from one
that has it.

Shapes: N rows, D d_in.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa
from torch import Tensor

from raysae.activations.schema import empty_rows, to_arrow, to_torch
from raysae.activations.store import TRAINING_SPLITS, Store, open_store
from raysae.sites import Site
from raysae.storage.local_copies import copied_uri
from raysae.training.rows import Rows

READ_HERE_BYTES = 64 * 2**20
"""The driver reads a site of up to so many bytes itself: starting workers takes seconds."""
PIECE_BYTES = 256 * 2**20
"""A block has at most so many bytes: a task holds it twice, and Ray moves it as a whole."""
TASK_CPUS = 0.5
"""CPUs that a task reserves: most of its time it waits for storage."""
READERS = 2
"""Threads with which a task reads its piece."""


@dataclass(frozen=True)
class SharedSite:
    """References to one site's rows in Ray's object store, small enough to send to any worker."""

    dtype: str
    d_in: int
    blocks: dict[str, list[Any]]
    """For each split, references to Arrow tables, with the rows in the store's order."""

    def tensors(self, split: str) -> list[Tensor]:
        """The split's blocks as ``[rows, d_in]`` views of the object store's memory."""
        import ray

        tables = ray.get(self.blocks[split])
        return [rows for table in tables for rows in to_torch(table["activation"], self.dtype)]

    def rows(self, split: str) -> Rows:
        """The split's rows, ``[rows, d_in]``, as views of the object store's memory."""
        return Rows(self.tensors(split))


@dataclass(frozen=True)
class Piece:
    """The rows of a split from ``start`` up to ``stop``, in the store's order: one block."""

    split: str
    start: int
    stop: int


def share_site(
    store: Store,
    site: Site,
    piece_bytes: int = PIECE_BYTES,
    splits: Sequence[str] = TRAINING_SPLITS,
) -> SharedSite:
    """Read ``splits`` of ``site`` once into the object store of the connected Ray, ``piece_bytes`` to a
    block.

    The caller must have checked the checksums. Raises UserError when a shard is not readable.
    """
    import ray

    pieces = list(pieces_of(store, site, max(piece_bytes // store.row_bytes, 1), splits))
    size = sum(piece.stop - piece.start for piece in pieces) * store.row_bytes
    if size <= min(READ_HERE_BYTES, piece_bytes):
        read = [ray.put(read_piece(store, site, piece)) for piece in pieces]
    else:
        read = _read_by_tasks(store, site, pieces)
    blocks: dict[str, list[Any]] = {split: [] for split in splits}
    for piece, block in zip(pieces, read, strict=True):
        blocks[piece.split].append(block)
    return SharedSite(store.manifest.dtype, store.d_in, blocks)


def pieces_of(
    store: Store, site: Site, most: int, splits: Sequence[str] = TRAINING_SPLITS
) -> Iterator[Piece]:
    """The rows of ``splits`` of ``site`` in even pieces, of ``most`` rows at most."""
    for split in splits:
        rows = getattr(store.entry(site).rows, split)
        count = -(-rows // most)
        for number in range(count):
            yield Piece(split, number * rows // count, (number + 1) * rows // count)


def read_piece(store: Store, site: Site, piece: Piece) -> pa.Table:
    """The piece's rows in the column ``activation``. Raises UserError when a shard is not readable."""
    rows_ND = empty_rows(piece.stop - piece.start, store.d_in, store.manifest.dtype)
    parts = list(store.parts(site, piece.split, piece.start, piece.stop))
    store.fill(rows_ND, parts, READERS)
    return pa.table([to_arrow(rows_ND)], names=["activation"])


def _read_by_tasks(store: Store, site: Site, pieces: list[Piece]) -> list[Any]:
    """A reference to each piece's table, in order; Ray Data reads them on all nodes at once."""
    import ray

    copied = copied_uri(store.path) if store.uri is None else None  # each node makes its own copy
    opened = {"where": copied or str(store.opened_by), "copy": copied is not None, "site": site}
    tasks = [asdict(piece) for piece in pieces]
    dataset = ray.data.from_items(tasks, override_num_blocks=len(tasks)).map_batches(
        _read, fn_kwargs=opened, batch_size=None, batch_format="pyarrow",
        num_cpus=TASK_CPUS,
    )  # fmt: skip
    dataset.context.target_max_block_size = None  # one block a task
    dataset.context.execution_options.preserve_order = True
    return dataset.materialize().to_arrow_refs()


def _read(task: pa.Table, where: str, copy: bool, site: Site) -> pa.Table:
    (row,) = task.to_pylist()
    return read_piece(open_store(where, copy=copy).trust(), site, Piece(**row))
