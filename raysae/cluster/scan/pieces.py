"""What a scan reads, and in which order: a split's rows, cut into pieces."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from raysae.training.rows import surveyed
from raysae.training.windows import WindowOrder

Piece = tuple[int, int]
"""The numbers of the first row and of the row after the last."""


@dataclass(frozen=True)
class InWindows:
    """An epoch's windows in their order, each in pieces of at most ``piece_rows`` rows."""

    among: WindowOrder
    piece_rows: int
    most: int | None = None
    """Only the first so many windows; None: all."""

    def pieces(self) -> Iterator[Piece]:
        """The pieces in the order in which they are read."""
        for start, stop in self._windows():
            yield from _cut(start, stop, self.piece_rows)

    def first_pieces(self) -> dict[int, int]:
        """The number of the first piece of each window, by the window's first row."""
        found, number = {}, 0
        for start, stop in self._windows():
            found[start] = number
            number += math.ceil((stop - start) / self.piece_rows)
        return found

    def _windows(self) -> Iterator[Piece]:
        for number in self.among.numbers()[: self.most]:
            start = number * self.among.size
            yield start, min(start + self.among.size, self.among.rows)


@dataclass(frozen=True)
class InOrder:
    """All rows in storage order."""

    rows: int
    piece_rows: int

    def pieces(self) -> Iterator[Piece]:
        """The pieces in the order in which they are read."""
        return _cut(0, self.rows, self.piece_rows)


@dataclass(frozen=True)
class Survey:
    """At least ``count`` of ``rows`` rows, spread evenly; a piece is a batch of ``RowSource.survey``."""

    rows: int
    count: int

    def pieces(self) -> Iterator[Piece]:
        """The pieces in the order in which they are read."""
        return surveyed(self.rows, self.count)


Order = InWindows | InOrder | Survey


def _cut(start: int, stop: int, rows: int) -> Iterator[Piece]:
    for at in range(start, stop, rows):
        yield at, min(at + rows, stop)
