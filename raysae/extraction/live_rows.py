"""Live training rows: computed while they are trained on, and read from disk once they were kept."""

from bisect import bisect_right
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate, chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from raysae.activations.live import not_on_disk, read_head
from raysae.activations.manifest import MANIFEST_FILE
from raysae.activations.schema import empty_rows
from raysae.activations.store import Store, open_store
from raysae.activations.store_files import LocalFiles
from raysae.activations.streaming import StreamedRows
from raysae.cluster.reading import OpenSite
from raysae.cluster.scan.opening import ScanPlan
from raysae.cluster.scan.reader import Reader, arrived
from raysae.cluster.scan.rows import VALIDATION, ScannedRows
from raysae.cluster.scan.store_scan import opened
from raysae.cluster.sharing import SharedSite, share_site
from raysae.extraction.live_scan import LiveData, rows_in
from raysae.remembered import remembered
from raysae.sites import Site
from raysae.storage.file_systems import Stamp
from raysae.training.headed_rows import HeadedRows
from raysae.training.rows import EVALUATION_BATCH, IndexedRows, Rows, rebatched
from raysae.training.windows import Window, WindowOrder, pieces, windows

READ_ALONE_BYTES = 256 * 2**20
"""Kept rows of up to so many bytes are read by each trial for itself: to begin a scan takes longer."""
LOOKING = -2
"""The number of a pass that only looks at the rows, beside those of the epochs, which count from 0."""


class LiveRows(IndexedRows):
    """The training rows of one site of a live store.

    An epoch is a pass of the model over the texts, which all readers share that are at work on it. Each
    copies its rows into a shuffle window of its own.
    """

    sequential = True
    passing = True

    def __init__(self, store: Store, site: Site, service: Any, data: LiveData, piece_bytes: int):
        self.store, self.d_in, self.site = store, store.d_in, site
        self.service, self.data, self._piece_bytes = service, data, piece_bytes
        assert store.live is not None
        live = store.live
        self._starts = [0, *accumulate(live.rows(site, shard) for shard in range(live.shards))]
        self.pace = tuple(self._starts)
        self._patient = False
        self._at_work: Reader | None = None
        """The reader of the epoch that is being read."""
        self._reader: Reader | None = None
        """The reader of the last epoch, at the first piece of the next."""

    def __len__(self) -> int:
        return self._starts[-1]

    def read(self, start: int, stop: int) -> Tensor:
        """Raises UserError: live rows have no random access."""
        raise not_on_disk(self.store, self.site)

    def read_patiently(self) -> None:
        """See ``RowSource.read_patiently``."""
        self._patient = True

    def hurry(self, waits: bool) -> None:
        """See ``RowSource.hurry``."""
        reader = self._at_work
        if reader is not None and reader.awaited:
            reader.hurry(waits)

    def batches(self, batch_size: int = EVALUATION_BATCH) -> Iterator[Tensor]:
        """All rows in order, in batches ``[batch, d_in]``: one pass of the model more."""
        among = WindowOrder(len(self), batch_size, 0, LOOKING, sequential=True)
        in_order = (
            Window(one.start, torch.arange(one.rows), one.rows, among) for one in windows(among)
        )
        yield from rebatched(self.taken(in_order, batch_size), batch_size)

    def taken(self, order: Iterator[Window], batch_size: int) -> Iterator[Tensor]:
        """Yield the rows of the windows in ``order`` as batches ``[batch, d_in]``, of at most
        ``batch_size`` rows each, in the store's dtype."""
        window = next(order, None)
        if window is None:
            return
        kept = self._kept()
        if kept is not None:
            yield from kept.taken(chain([window], order), batch_size)
            return
        ready: dict[int, Rows] = {}
        with self._passing(window) as (reader, fetch):
            every = chain([window], order)
            coming = arrived(reader, every, fetch, ready, self._patient)
            for window, index_B in pieces(coming, batch_size):
                yield ready[window.start].gather(index_B)

    @contextmanager
    def _passing(self, first: Window) -> Iterator["tuple[Reader, _Filling]"]:
        """A reader from a window on, and what fills windows with what it takes.

        A reader of one epoch is that of the next: it lets go after the last, or when reading ends early.
        """
        epoch = first.among.epoch
        chained = self.data.is_chained(epoch)
        before = epoch * (len(self._starts) - 1) if chained else 0
        fetch = _Filling(self.store, self.site, self._starts, before)
        reader, self._reader = self._reader, None
        if reader is not None and not (chained and reader.number == fetch.piece_of(first.start)):
            reader.leave()
            reader = None
        if reader is None:
            scan = self.data.scan(epoch, self.service)
            reader = Reader(self.service, scan, fetch.piece_of(first.start))
        whole, self._at_work = False, reader
        try:
            yield reader, fetch
            whole = True
        finally:
            self._at_work = None
            if whole and chained and epoch + 1 < self.data.chained:
                reader.pause(before + len(self._starts) - 1)
                self._reader = reader
            else:
                reader.leave()

    def _kept(self) -> IndexedRows | None:
        """The same rows on disk, when a pass has kept them since."""
        if self.store.computes_rows and not self.data.keep:
            return None
        store = _opened_now(self.data.place)
        if store.computes_rows:
            return None
        if len(self) * store.row_bytes <= READ_ALONE_BYTES:
            return StreamedRows(store, self.site, "train", sequential=True)
        return ScannedRows(
            store, self.site, "train", self.service, self._piece_bytes, sequential=True
        )


class _Filling:
    """Copies rows from the shards' blocks into windows; two blocks of memory take turns."""

    def __init__(self, store: Store, site: Site, starts: list[int], before: int):
        self.store, self.site, self.starts, self.before = store, site, starts, before
        self._memory = [self._empty(0), self._empty(0)]
        self._turn = 0
        self._last: tuple[int, Tensor] = (-1, self._empty(0))
        """The last shard that was taken, which the next window may begin in, and its rows."""

    def piece_of(self, row: int) -> int:
        """The piece that a row of the epoch is in: ``before`` it come those of earlier epochs."""
        return self.before + self._shard_of(row)

    def _shard_of(self, row: int) -> int:
        return bisect_right(self.starts, row) - 1

    def __call__(self, reader: Reader, window: Window, used: Window | None) -> Rows:
        """The rows of a window, in order."""
        rows_ND = self._next_memory(window.rows)
        at, shard = 0, self._shard_of(window.start)
        while at < window.rows:
            block_ND = self._shard(reader, shard)
            first = max(window.start - self.starts[shard], 0)
            part_ND = block_ND[first : first + window.rows - at]
            rows_ND[at : at + len(part_ND)] = part_ND
            at, shard = at + len(part_ND), shard + 1
        return Rows(rows_ND)

    def _shard(self, reader: Reader, shard: int) -> Tensor:
        if self._last[0] != shard:
            reader.number = reader.needed = self.before + shard
            self._last = -1, self._empty(0)  # its memory may go
            self._last = shard, rows_in(reader.next(), self.site, self.store)
        return self._last[1]

    def _next_memory(self, rows: int) -> Tensor:
        self._turn = 1 - self._turn
        if len(self._memory[self._turn]) < rows:
            self._memory[self._turn] = self._empty(rows)
        return self._memory[self._turn][:rows]

    def _empty(self, rows: int) -> Tensor:
        return empty_rows(rows, self.store.d_in, self.store.manifest.dtype)


def _opened_now(place: str) -> Store:
    """The store as it is now: a pass may have kept its rows since it was opened."""
    return _opened_at(place, LocalFiles(Path(place)).stamps([MANIFEST_FILE]).get(MANIFEST_FILE))


@remembered(maxsize=2)
def _opened_at(place: str, _manifest: Stamp | None) -> Store:
    return open_store(place).trust()


def ordered(store: Store, site: Site, rows: IndexedRows) -> IndexedRows:
    """Training rows on disk in the order in which they are trained on: those of a live store that was
    kept as they came live, with the same statistics."""
    return rows if store.live is None else HeadedRows(rows, lambda: read_head(store, site))


@dataclass(frozen=True)
class KeptSite:
    """A site of a live store whose training rows were kept, as ``inner`` reads it."""

    place: str
    """The store's folder."""
    site: Site
    inner: OpenSite

    def rows(self, split: str) -> IndexedRows:
        """The rows of a split, ``[rows, d_in]``."""
        rows = self.inner.rows(split)
        return rows if split == VALIDATION else ordered(opened(self.place), self.site, rows)


@dataclass(frozen=True)
class LiveSite:
    """A site whose training rows are computed while training; it can be sent to any worker."""

    site: Site
    service: Any
    data: LiveData
    piece_bytes: int
    """Bytes of a piece, at most, once the rows are read from disk."""
    held_out: SharedSite | None = None
    """The validation rows, where they stay in memory."""

    def rows(self, split: str) -> IndexedRows:
        """The rows of a split, ``[rows, d_in]``."""
        store = opened(self.data.place)
        if split != VALIDATION:
            rows = LiveRows(store, self.site, self.service, self.data, self.piece_bytes)
            return ordered(store, self.site, rows)
        if self.held_out is not None:
            return self.held_out.rows(split)
        return StreamedRows(store, self.site, split)


def passes_in_words(store: Store, service: Any) -> str:
    """How many tokens the model has read for live data, as a line for people."""
    import ray

    assert store.live is not None
    tokens, whole = ray.get(service.counts.remote())["tokens"], max(store.live.tokens, 1)
    return f"Live: the model read {tokens:,} tokens, {tokens / whole:.2f} passes over the texts"


def live_sites(data: LiveData, plan: ScanPlan, service: Any) -> dict[Site, LiveSite]:
    """The sites of live data as workers read them; held-out rows that fit are put in memory, once."""
    store = open_store(data.place)
    return {
        site: LiveSite(
            site, service, data, plan.piece_bytes,
            share_site(store, site, splits=(VALIDATION,)) if site in plan.held_out else None,
        )
        for site in data.sites
    }  # fmt: skip
