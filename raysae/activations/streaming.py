"""Streaming a site's rows from disk while they are used, for sites larger than memory.

Several threads read the next window of rows while the current one is used. Two windows are in memory
at any time.

Shapes: N rows, D d_in.
"""

from bisect import bisect_right
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import torch
from torch import Tensor

from raysae.activations.schema import empty_rows
from raysae.activations.store import TRAINING_SPLITS, Segment, Store, open_store, refuse_rows
from raysae.errors import UserError
from raysae.sites import Site
from raysae.storage.file_systems import Stamp
from raysae.storage.remote_files import RemoteFiles
from raysae.training.rows import SHUFFLE_ROWS, IndexedRows, Rows, Splits
from raysae.training.windows import Window, pieces

READERS = 2
REMOTE_READERS, REQUEST_BYTES = 8, 8 * 2**20
"""Of a store at a URI: requests under way at a time, and the most bytes of one."""
_Begun = tuple[Window, Tensor, list[Future[None]]]
"""A window, the memory for its rows ``[N, D]``, and the reads that fill it."""


class StreamedRows(IndexedRows):
    """One split of one site, read from disk or a URI on demand; ``readers`` threads read each window.

    The number of readers does not change the rows or their order. The rows of a URI, which nobody has
    checked before, are checked as they come: UserError names the row that is not finite. Raises
    UserError when the split has no rows.
    """

    def __init__(
        self,
        store: Store,
        site: Site,
        split: str,
        readers: int | None = None,
        sequential: bool = False,
    ):
        self.store, self.d_in, self.sequential = store, store.d_in, sequential
        self.readers = readers or (READERS if store.uri is None else REMOTE_READERS)
        self._name = f"{store.place}: {site}, {split}"
        self._far = store.uri is not None
        self._segments = store.split_segments(site, split)
        if not self._segments:
            raise UserError(f"{store.place}: {site} has no {split} rows")
        self._starts = [0, *accumulate(segment.rows for segment in self._segments)]
        self._spare: list[Tensor] = []

    def __len__(self) -> int:
        return self._starts[-1]

    def read(self, start: int, stop: int) -> Tensor:
        """Read the rows from ``start`` up to ``stop``: ``[stop - start, d_in]``, the store's dtype."""
        rows_ND = self._memory(stop - start)
        for segment, first, count, at in self.reads(start, stop):
            self._read_into(rows_ND[at : at + count], segment, first, start + at)
        return rows_ND

    def sample(self, count: int, seed: int, shuffle_rows: int = SHUFFLE_ROWS) -> Tensor:
        """``count`` rows ``[count, d_in]`` drawn by ``seed``; reads no more windows than they lie in."""
        chosen, left = [], min(count, len(self))
        for window in self.windows(seed, -1, shuffle_rows):
            rows_ND = self.read(window.start, window.start + window.rows)
            chosen.append(rows_ND.index_select(0, window.order[:left]))
            left -= len(chosen[-1])
            if not left:
                break
        return torch.cat(chosen)

    def _read_into(self, rows_ND: Tensor, segment: Segment, first: int, number: int) -> None:
        """Read rows of a segment; ``number`` is the first one's number in the split."""
        self.store.read_into(rows_ND, segment, first)
        if self._far:
            refuse_rows(rows_ND, self._name, number)

    def taken(self, order: Iterator[Window], batch_size: int) -> Iterator[Tensor]:
        """Yield the rows of the windows in ``order`` as batches ``[batch, d_in]``, of at most
        ``batch_size`` rows each, in the store's dtype."""
        # allocating memory costs as much as reading into it, so the last epoch's memory is reused
        memory, self._spare = self._spare or [self._memory(0), self._memory(0)], []
        with ThreadPoolExecutor(self.readers) as pool:
            ready: dict[int, Tensor] = {}
            windows = self._windows(self._begun(pool, order, memory), ready)
            for window, index_B in pieces(windows, batch_size):
                yield ready[window.start].index_select(0, index_B)
        self._spare = memory

    def _windows(self, begun: Iterator[_Begun], ready: dict[int, Tensor]) -> Iterator[Window]:
        """Yield each window once its rows are in ``ready``, while the next one is being read."""
        current = next(begun, None)
        while current is not None:
            window, rows_ND, reads = current
            for read in reads:
                read.result()
            ready.clear()
            ready[window.start] = rows_ND
            following = next(begun, None)
            yield window
            current = following

    def _begun(
        self, pool: ThreadPoolExecutor, order: Iterator[Window], memory: list[Tensor]
    ) -> Iterator[_Begun]:
        """Start to read each window. The two blocks of memory take turns."""
        for number, window in enumerate(order):
            if len(memory[number % 2]) < window.rows:
                memory[number % 2] = self._memory(window.rows)
            rows_ND = memory[number % 2][: window.rows]
            reads = [
                pool.submit(
                    self._read_into, rows_ND[at : at + count], segment, first, window.start + at
                )
                for segment, first, count, at in self.reads(
                    window.start, window.start + window.rows
                )
            ]
            yield window, rows_ND, reads

    def reads(self, start: int, stop: int) -> Iterator[tuple[Segment, int, int, int]]:
        """Find rows ``start`` to ``stop``: a segment, the first row in it, the number of rows, and
        their index in the result."""
        at, number = 0, bisect_right(self._starts, start) - 1
        most = max(REQUEST_BYTES // self.store.row_bytes, 1) if self._far else stop - start
        while start < stop:
            segment = self._segments[number]
            first = start - self._starts[number]
            count = min(segment.rows - first, stop - start)
            if segment.offset is not None:  # one that is decoded is decoded whole
                count = min(count, most)
            yield segment, first, count, at
            start, at = start + count, at + count
            number += start == self._starts[number + 1]

    def _memory(self, rows: int) -> Tensor:
        return empty_rows(rows, self.d_in, self.store.manifest.dtype)


@dataclass(frozen=True)
class StreamedSite:
    """A reference to a site that workers stream; it is small, so it can be sent to any worker."""

    store: Path | str
    """Its folder or its URI."""
    site: Site
    seen: Mapping[str, Stamp] | None = None
    """At a URI: the stamps of the site's files when they were first seen."""

    @classmethod
    def of(cls, store: Store, site: Site) -> "StreamedSite":
        """The reference to a site of an opened store."""
        names = [shard.file for shard in store.entry(site).shards]
        files = store.files
        seen = files.stamps(names) if isinstance(files, RemoteFiles) else None
        return cls(store.opened_by, site, seen)

    def rows(self, split: str) -> StreamedRows:
        """The rows of a split, such as ``"train"``. The checksums are not checked here: the caller has
        checked them before."""
        store = open_store(self.store, seen=self.seen)
        return StreamedRows(store.trust(), self.site, split)


def rows_within(store: Store, site: Site, memory: float) -> Splits:
    """A site's training and validation rows for a single process, each row ``[d_in]``.

    They are loaded into memory, or streamed when they take more than ``memory`` bytes; of a store at a
    URI they are not compared with checksums. Raises UserError when a file was altered, or a split has no
    rows.
    """
    if store.training_bytes(site) > memory:
        if store.uri is None:  # else comparing the checksums is a whole pass over the data
            store.check(*store.entry(site).shards)
        train, validation = (StreamedRows(store, site, split) for split in TRAINING_SPLITS)
        return Splits(train, validation, store.known_truth())
    in_memory, held_out = (Rows(list(store.blocks(site, split))) for split in TRAINING_SPLITS)
    return Splits(in_memory, held_out, store.known_truth())
