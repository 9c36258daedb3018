"""A split's rows as a scan brings them: the reader's side, in the process that trains."""

import uuid
from bisect import bisect_left
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate, islice
from typing import Any

import torch
from torch import Tensor

from raysae.activations.schema import to_torch
from raysae.activations.store import Store
from raysae.activations.streaming import StreamedRows
from raysae.cluster.scan.pieces import InOrder, InWindows, Order, Survey
from raysae.cluster.scan.service import Scan
from raysae.cluster.scan.store_scan import StoreScan, opened
from raysae.cluster.sharing import SharedSite
from raysae.errors import UserError
from raysae.sites import Site
from raysae.training.rows import (
    EVALUATION_BATCH,
    SHUFFLE_ROWS,
    IndexedRows,
    Rows,
    Window,
    WindowOrder,
    pieces,
    rebatched,
    windows,
)

VALIDATION = "validation"
TAKE_SECONDS = 20.0
"""Seconds that one call to the service waits for a piece; then it is asked again."""
TRIES = 5
"""How often a reader begins anew after its pieces were lost with a node."""


class Reader:
    """Takes the pieces of a scan in order, from piece ``number`` on."""

    def __init__(self, service: Any, scan: Scan, number: int):
        self.service, self.scan, self.number = service, scan, number
        self.needed = number
        """The first piece that is still in use."""
        self.name, self._running, self._tries = uuid.uuid4().hex, "", 0

    def __next__(self) -> Any:
        """The next piece's block; ends with StopIteration after the last.

        Raises UserError when the scan cannot read on.
        """
        while True:
            block = self._taken()
            if block is not None:
                self.number += 1
                return block

    def leave(self) -> None:
        """Let go of the scan."""
        if self._running:
            self.service.leave.remote(self._running, self.name)

    def _taken(self) -> Any:
        """The next block; None when it must be asked for again."""
        import ray

        try:
            if not self._running:
                self._join()
            call = (self._running, self.name, self.number, self.needed, TAKE_SECONDS)
            answer = ray.get(self.service.take.remote(*call))
            if answer.state == "piece":
                return ray.get(answer.piece)
        except (ray.exceptions.ObjectLostError, ray.exceptions.ActorUnavailableError) as error:
            self._begin_again(error)
            return None
        if answer.state == "end":
            raise StopIteration
        if answer.state == "failed":
            raise (UserError if answer.refused else RuntimeError)(answer.reason)
        if answer.state == "detached":
            self._running = ""
        return None

    def _join(self) -> None:
        import ray

        actor = ray.get_runtime_context().get_actor_id() or ""
        joined = (self.scan, self.name, self.number, actor)
        self._running = ray.get(self.service.join.remote(*joined))

    def _begin_again(self, error: Exception) -> None:
        self._tries += 1
        if self._tries > TRIES:
            raise RuntimeError(f"a block of the scan was lost {self._tries} times: {error}")
        self._running = ""


class ScannedRows(StreamedRows):
    """One split of one site. What is read in order comes from a scan that other readers share."""

    def __init__(
        self, store: Store, site: Site, split: str, service: Any, piece_bytes: int,
        sequential: bool = False,
    ):  # fmt: skip
        super().__init__(store, site, split, sequential=sequential)
        self.site, self.split, self.service = site, split, service
        self._piece_rows = max(piece_bytes // store.row_bytes, 1)

    def taken(self, order: Iterator[Window], batch_size: int) -> Iterator[Tensor]:
        """Yield the rows of the windows in ``order`` as batches ``[batch, d_in]``, of at most
        ``batch_size`` rows each, in the store's dtype."""
        ready: dict[int, Rows] = {}
        for window, index_B in pieces(self._arrived(order, ready), batch_size):
            yield ready[window.start].gather(index_B)

    def batches(self, batch_size: int = EVALUATION_BATCH) -> Iterator[Tensor]:
        """All rows in storage order, in batches ``[batch, d_in]``."""
        yield from rebatched(self._all(InOrder(len(self), self._piece_rows)), batch_size)

    def survey(self, count: int) -> Iterator[tuple[int, Tensor]]:
        """See ``RowSource.survey``."""
        order = Survey(len(self), count)
        for (start, _), rows_ND in zip(order.pieces(), self._all(order), strict=True):
            yield start, rows_ND

    def sample(self, count: int, seed: int, shuffle_rows: int = SHUFFLE_ROWS) -> Tensor:
        """``count`` rows ``[count, d_in]`` drawn by ``seed``; all rows when there are fewer."""
        among = WindowOrder(len(self), shuffle_rows, seed, -1, self.sequential)
        lengths = [len(window.order) for window in windows(among)]
        few = bisect_left(list(accumulate(lengths)), min(count, len(self))) + 1
        parts = self._all(InWindows(among, self._piece_rows, few))
        chosen, left = [], min(count, len(self))
        for window in islice(windows(among), few):
            rows_ND = _first(parts, window.rows)
            chosen.append(rows_ND.index_select(0, window.order[:left]))
            left -= len(chosen[-1])
        return torch.cat(chosen)

    @contextmanager
    def _reader(self, order: Order, number: int = 0) -> Iterator[Reader]:
        scan = StoreScan(self.store.place, self.site, self.split, order)
        reader = Reader(self.service, scan, number)
        try:
            yield reader
        finally:
            reader.leave()

    def _all(self, order: Order) -> Iterator[Tensor]:
        """The rows ``[rows, d_in]`` of each piece."""
        with self._reader(order) as reader:
            for _ in order.pieces():
                reader.needed = reader.number
                yield torch.cat(self._tensors(next(reader)))

    def _tensors(self, table: Any) -> list[Tensor]:
        return list(to_torch(table["activation"], self.store.manifest.dtype))

    def _arrived(self, order: Iterator[Window], ready: dict[int, Rows]) -> Iterator[Window]:
        """Yield each window once its rows are in ``ready``, while the next one is on its way."""
        window = next(order, None)
        if window is None:
            return
        windows = InWindows(window.among, self._piece_rows)
        first = windows.first_pieces()
        with (
            self._reader(windows, first[window.start]) as reader,
            ThreadPoolExecutor(1) as pool,
        ):
            coming = pool.submit(self._window, reader, window, first[window.start])
            while window is not None:
                rows, held = coming.result(), first[window.start]
                ready.clear()
                ready[window.start] = rows
                following = next(order, None)
                if following is not None:
                    reader.number = first[following.start]
                    coming = pool.submit(self._window, reader, following, held)
                del rows
                yield window
                window = following

    def _window(self, reader: Reader, window: Window, needed: int) -> Rows:
        """All rows of a window; the pieces before ``needed`` are in use no more."""
        blocks: list[Tensor] = []
        while sum(map(len, blocks)) < window.rows:
            reader.needed = needed
            blocks += self._tensors(next(reader))
        return Rows(blocks)


def _first(parts: Iterator[Tensor], rows: int) -> Tensor:
    """The next ``rows`` rows of ``parts``, which end there."""
    found: list[Tensor] = []
    while sum(map(len, found)) < rows:
        found.append(next(parts))
    return torch.cat(found)


@dataclass(frozen=True)
class ScannedSite:
    """A site that workers read through a scan; it is small, so it can be sent to any worker."""

    store: str
    """The store's folder or URI."""
    site: Site
    service: Any
    piece_bytes: int
    """Bytes of a piece, at most (but at least one row)."""
    held_out: SharedSite | None = None
    """The validation rows, where they stay in memory."""
    sequential: bool = False

    def rows(self, split: str) -> IndexedRows:
        """The rows of a split, ``[rows, d_in]``. Nothing is checked here: the caller has done so."""
        if self.held_out is not None and split == VALIDATION:
            return self.held_out.rows(split)
        return ScannedRows(
            opened(self.store), self.site, split, self.service, self.piece_bytes, self.sequential
        )
