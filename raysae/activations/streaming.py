"""Rows read from the store while they are used: for sites larger than memory.

A window of rows is read straight into memory, in pieces and by several threads, while the one before
it is used; at any time two windows are held.

Shapes: N rows, D d_in.
"""

from bisect import bisect_right
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import torch
from torch import Tensor

from raysae.activations.schema import torch_dtype
from raysae.activations.store import TRAINING_SPLITS, Segment, Store, open_store
from raysae.errors import UserError
from raysae.sites import Site
from raysae.training.rows import IndexedRows, Rows, Splits, Window, pieces

READERS = 2
_Begun = tuple[Window, Tensor, list[Future[None]]]
"""A window, the memory for its rows, and the reads that fill it."""


class StreamedRows(IndexedRows):
    """One split of one site, read from disk as it is asked for; ``readers`` threads read a window.

    The number of readers never shows in the rows or in their order.
    """

    def __init__(self, store: Store, site: Site, split: str, readers: int = READERS):
        self.store, self.d_in, self.readers = store, store.d_in, readers
        self._segments = [
            segment
            for shard in store.entry(site).shards
            if getattr(shard.rows, split)
            for segment in store.segments(shard, split)
        ]
        if not self._segments:
            raise UserError(f"{store.path}: {site} has no {split} rows")
        self._starts = [0, *accumulate(segment.rows for segment in self._segments)]
        self._spare: list[Tensor] = []

    def __len__(self) -> int:
        return self._starts[-1]

    def read(self, start: int, stop: int) -> Tensor:
        rows_ND = self._memory(stop - start)
        for segment, first, count, at in self._pieces(start, stop):
            self.store.read_into(rows_ND[at : at + count], segment, first)
        return rows_ND

    def taken(self, order: Iterator[Window], batch_size: int) -> Iterator[Tensor]:
        # fresh memory costs as much as reading into it, so that of the last epoch serves again
        memory, self._spare = self._spare or [self._memory(0), self._memory(0)], []
        with ThreadPoolExecutor(self.readers) as pool:
            ready: dict[int, Tensor] = {}
            windows = self._windows(self._begun(pool, order, memory), ready)
            for window, index_B in pieces(windows, batch_size):
                yield ready[window.start].index_select(0, index_B)
        self._spare = memory

    def _windows(self, begun: Iterator[_Begun], ready: dict[int, Tensor]) -> Iterator[Window]:
        """Each window once its rows are ``ready``; the next is being read while it is used."""
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
        """Each window with the memory that the readers are filling; the two take turns."""
        for number, window in enumerate(order):
            if len(memory[number % 2]) < window.rows:
                memory[number % 2] = self._memory(window.rows)
            rows_ND = memory[number % 2][: window.rows]
            reads = [
                pool.submit(self.store.read_into, rows_ND[at : at + count], segment, first)
                for segment, first, count, at in self._pieces(
                    window.start, window.start + window.rows
                )
            ]
            yield window, rows_ND, reads

    def _pieces(self, start: int, stop: int) -> Iterator[tuple[Segment, int, int, int]]:
        """Where rows ``start`` to ``stop`` lie: a segment, the first row in it, how many, and where
        they go."""
        at, number = 0, bisect_right(self._starts, start) - 1
        while start < stop:
            segment = self._segments[number]
            first = start - self._starts[number]
            count = min(segment.rows - first, stop - start)
            yield segment, first, count, at
            start, at, number = start + count, at + count, number + 1

    def _memory(self, rows: int) -> Tensor:
        return torch.empty(rows, self.d_in, dtype=torch_dtype(self.store.manifest.dtype))


@dataclass(frozen=True)
class StreamedSite:
    """A site that is streamed, small enough to hand to any worker."""

    store: Path
    site: Site

    def rows(self, split: str) -> StreamedRows:
        """The split's rows. Whoever chose to stream has checked the site's checksums."""
        return StreamedRows(open_store(self.store).trust(), self.site, split)


def rows_within(store: Store, site: Site, memory: float) -> Splits:
    """A site's rows for one process alone: in its own memory, or streamed when they are more than
    ``memory`` bytes."""
    if store.training_bytes(site) > memory:
        store.check(*store.entry(site).shards)
        train, validation = (StreamedRows(store, site, split) for split in TRAINING_SPLITS)
        return Splits(train, validation, store.truth())
    in_memory, held_out = (Rows(list(store.blocks(site, split))) for split in TRAINING_SPLITS)
    return Splits(in_memory, held_out, store.truth())
