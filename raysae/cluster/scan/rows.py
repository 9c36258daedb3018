"""A split's rows as a scan brings them."""

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import accumulate, chain, islice
from typing import Any

import torch
from torch import Tensor

from raysae.activations.schema import to_torch
from raysae.activations.store import Store
from raysae.activations.streaming import StreamedRows
from raysae.cluster.scan.pieces import InOrder, InWindows, Order, Survey
from raysae.cluster.scan.reader import Reader, arrived, reading
from raysae.cluster.scan.store_scan import StoreScan, opened
from raysae.cluster.sharing import SharedSite
from raysae.sites import Site
from raysae.training.rows import EVALUATION_BATCH, SHUFFLE_ROWS, IndexedRows, Rows, rebatched
from raysae.training.windows import Window, WindowOrder, pieces, windows

VALIDATION = "validation"


class ScannedRows(StreamedRows):
    """One split of one site. What is read in order comes from a scan that other readers share."""

    def __init__(
        self, store: Store, site: Site, split: str, service: Any, piece_bytes: int,
        sequential: bool = False, cyclic: bool = False,
    ):  # fmt: skip
        super().__init__(store, site, split, sequential=sequential)
        self.cyclic = cyclic
        self.site, self.split, self.service = site, split, service
        self._piece_rows = max(piece_bytes // store.row_bytes, 1)

    def taken(self, order: Iterator[Window], batch_size: int) -> Iterator[Tensor]:
        """Yield the rows of the windows in ``order`` as batches ``[batch, d_in]``, of at most
        ``batch_size`` rows each, in the store's dtype."""
        ready: dict[int, Rows] = {}
        for window, index_B in pieces(self._arrived(order, ready), batch_size):
            yield ready[window.start].gather(index_B)

    def begins_at(self, seed: int, epoch: int, shuffle_rows: int) -> int:
        """Where a scan of the epoch is now, if these rows are ``cyclic``; see ``RowSource.begins_at``."""
        if not self.cyclic:
            return 0
        import ray

        among = WindowOrder(len(self), shuffle_rows, seed, epoch, self.sequential)
        in_windows = InWindows(among, self._piece_rows)
        now = ray.get(self.service.position.remote(self._scan(in_windows)))
        firsts = list(in_windows.first_pieces().values())
        return bisect_left(firsts, now) % len(firsts)

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

    def _scan(self, order: Order) -> StoreScan:
        return StoreScan(str(self.store.opened_by), self.site, self.split, order)

    def _all(self, order: Order) -> Iterator[Tensor]:
        """The rows ``[rows, d_in]`` of each piece."""
        with reading(self.service, self._scan(order)) as reader:
            for _ in order.pieces():
                reader.needed = reader.number
                yield torch.cat(self._tensors(reader.next()))

    def _tensors(self, table: Any) -> list[Tensor]:
        return list(to_torch(table["activation"], self.store.manifest.dtype))

    def _arrived(self, order: Iterator[Window], ready: dict[int, Rows]) -> Iterator[Window]:
        """Yield each window once its rows are in ``ready``, as views of Ray's memory."""
        window = next(order, None)
        if window is None:
            return
        in_windows = InWindows(replace(window.among, first=0), self._piece_rows)
        first = in_windows.first_pieces()
        numbers = window.among.numbers()
        last = numbers[-window.among.first - 1] if window.among.first else numbers[-1]
        to_the_end, rest = _split_after(chain([window], order), last * window.among.size)

        def fetch(reader: Reader, window: Window, used: Window | None) -> Rows:
            reader.number = first[window.start]  # of windows without ordinary rows nothing is read
            blocks: list[Tensor] = []
            while sum(map(len, blocks)) < window.rows:
                reader.needed = first[(used or window).start]
                blocks += self._tensors(reader.next())
            return Rows(blocks)

        for part in (to_the_end, rest):  # a cyclic epoch goes round: its scan ends, and one begins
            window = next(part, None)
            if window is not None:
                with reading(self.service, self._scan(in_windows), first[window.start]) as reader:
                    yield from arrived(reader, chain([window], part), fetch, ready)


def _split_after(order: Iterator[Window], start: int) -> tuple[Iterator[Window], Iterator[Window]]:
    """The windows up to the one that starts at row ``start``, and the others, to be read after them."""

    def up_to_it() -> Iterator[Window]:
        for window in order:
            yield window
            if window.start == start:
                return

    return up_to_it(), order


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
    cyclic: bool = False
    """Whether an epoch may begin where a running scan is, and go round."""

    def rows(self, split: str) -> IndexedRows:
        """The rows of a split, ``[rows, d_in]``. Nothing is checked here: the caller has done so."""
        if self.held_out is not None and split == VALIDATION:
            return self.held_out.rows(split)
        return ScannedRows(
            opened(self.store), self.site, split, self.service, self.piece_bytes, cyclic=self.cyclic
        )
