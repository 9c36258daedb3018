"""A scan of a store: Ray Data reads its byte ranges, one block a piece, in order."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from torch import Tensor

from raysae.activations.schema import empty_rows, to_arrow
from raysae.activations.store import Segment, Store, open_store, refuse_rows
from raysae.activations.streaming import REMOTE_READERS, StreamedRows
from raysae.cluster.scan.pieces import Order
from raysae.errors import UserError
from raysae.remembered import remembered
from raysae.sites import Site
from raysae.storage.file_systems import Stamp

if TYPE_CHECKING:
    from ray.data import Dataset

READ_CPUS = 0.5
"""CPUs of one read: two run at once on a reserved CPU."""
READS_UNDERWAY = 8
"""Blocks that Ray Data may hold before the service takes them; with 4 it starts one read at a time."""
LEAST_STORE = 256 * 2**20
"""Ray Data starts no read for some time when it may hold much less than this."""
_spare: dict[tuple[int, str], Tensor] = {}
"""The memory that the last block of this process was read into, by d_in and dtype."""


@dataclass(frozen=True)
class StoreScan:
    """One pass over the rows of a split, in pieces; equal scans read the same bytes."""

    place: str
    """The store's folder or URI."""
    site: Site
    split: str
    order: Order

    def pieces(self) -> Iterator[tuple[int, int]]:
        """The pieces in the order in which they are read."""
        return self.order.pieces()

    def blocks(self, first: int, cpus: float) -> Iterator[tuple[Any, int]]:
        """References to the blocks from piece ``first`` on, each with its bytes; ``cpus`` may be used.

        Each is an Arrow table with the column ``activation``. Raises what a read raises.
        """
        pieces = list(islice(self.pieces(), first, None))
        if not pieces:
            return
        row_bytes = opened(self.place).row_bytes
        largest = max(stop - start for start, stop in pieces) * row_bytes
        for bundle in _dataset(self, pieces, cpus, largest).iter_internal_ref_bundles():
            sizes = [metadata.size_bytes or 0 for metadata in bundle.metadata]
            yield from zip(bundle.block_refs, sizes, strict=True)


def _dataset(
    scan: StoreScan, pieces: list[tuple[int, int]], cpus: float, largest: int
) -> "Dataset":
    import ray
    from ray.data import ExecutionResources

    from raysae.cluster.scan.source import PieceSource

    dataset = ray.data.read_datasource(
        PieceSource(scan.place, scan.site, scan.split, pieces),
        override_num_blocks=len(pieces),
        num_cpus=READ_CPUS,
    )
    context = dataset.context
    context.target_max_block_size = None  # a piece is one block
    context.execution_options.preserve_order = True
    held = max(LEAST_STORE, READS_UNDERWAY * largest)
    context.execution_options.resource_limits = ExecutionResources.for_limits(
        cpu=cpus, object_store_memory=held
    )
    return dataset


@remembered(maxsize=8)
def opened(place: str) -> Store:
    """The store at ``place``, opened once in this process; the driver has checked it."""
    return open_store(place).trust()


@remembered(maxsize=32)
def rows_of(place: str, site: Site, split: str) -> StreamedRows:
    """The rows of a split, whose footers are read once in this process."""
    return StreamedRows(opened(place), site, split)


@remembered(maxsize=32)
def stamps_of(place: str, site: Site) -> dict[str, Stamp]:
    """What tells whether a site's shards have changed, from the first time that it is asked for."""
    store = opened(place)
    return store.files.stamps([shard.file for shard in store.entry(site).shards])


@dataclass(frozen=True)
class Ranges:
    """The ranges of a store that a block is read from; small enough for a message."""

    place: str
    """The store's folder or URI."""
    reads: list[tuple[Segment, int, int, int]]
    """Segment, first row in it, rows, and the place of the first among the block's rows."""
    rows: int
    """Rows of the block."""
    stamps: dict[str, Stamp]
    """The stamps of the segments' files when the scan began."""


def read_block(ranges: Ranges) -> pa.Table:
    """The rows of a block in the column ``activation``.

    Raises UserError, naming the file, when one cannot be read, or has changed since the scan began.
    """
    store, reads, rows = opened(ranges.place), ranges.reads, ranges.rows
    _refuse_changed(store, ranges.stamps)
    rows_ND = _memory(store, rows)
    store.fill(rows_ND, reads, 1 if store.uri is None else REMOTE_READERS)
    if store.uri is not None:  # nobody has read them before
        for segment, first, count, at in reads:
            file = f"{store.files.file(segment.shard.file)}, row group {segment.group}"
            refuse_rows(rows_ND[at : at + count], file, first)
    return pa.table([to_arrow(rows_ND)], names=["activation"])


def _memory(store: Store, rows: int) -> Tensor:
    """Memory for rows ``[rows, d_in]``, that of the block before where it suffices: Ray has copied it by
    then, as a process reads one block at a time. Allocating costs as much as reading."""
    key = store.d_in, store.manifest.dtype
    if key not in _spare or len(_spare[key]) < rows:
        _spare.clear()
        _spare[key] = empty_rows(rows, *key)
    return _spare[key][:rows]


def _refuse_changed(store: Store, stamps: dict[str, Stamp]) -> None:
    there = store.files.stamps(list(stamps))
    for name, stamp in stamps.items():
        found = there.get(name)
        if found is None or not found.fits(stamp):
            now = "missing" if found is None else f"now: {found}"
            raise UserError(
                f"{store.files.file(name)}: changed while it was scanned (before: {stamp}; {now}); put "
                "the old file back and give the same command again, or make the run anew"
            )
