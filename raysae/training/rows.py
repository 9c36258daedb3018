"""The training rows, in memory or streamed, and the order in which an epoch reads them.

The order depends on the seed, the epoch, the number of rows and the shuffle window alone. So rows
in memory and rows streamed from disk, in blocks of any size, train to the same bits.

Shapes: B batch, D d_in.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from raysae.sae.metrics import Sinks
from raysae.sae.truth import Truth
from raysae.training.config import TrainingConfig
from raysae.training.gathering import gathered
from raysae.training.placing import placed
from raysae.training.windows import Window, WindowOrder, pieces, windows

EVALUATION_BATCH = 4096
SHUFFLE_ROWS = TrainingConfig.shuffle_rows


@dataclass(frozen=True)
class StreamPosition:
    """A position in a stream of batches; a checkpoint saves it."""

    epoch: int = 0
    rows: int = 0
    """Rows of the epoch that were read already."""
    first: int = 0
    """The place in the epoch's order of the window that it began with."""


class RowSource(ABC):
    """Rows ``[rows, d_in]`` to train on, in their storage dtype: the interface of all kinds of
    rows.

    ``IndexedRows`` have random access and can be read again; ``IteratorRows`` are read once, in
    order.
    """

    d_in: int
    sequential: bool = False
    """Whether an epoch reads its windows in storage order; their rows are shuffled all the same."""
    passing: bool = False
    """Whether the rows come past once for several readers, so that those of one process must not run
    far ahead of each other."""
    pace: tuple[int, ...] = ()
    """Equal for rows that come past in equal numbers at the same time, so that no reader of one has to
    wait for those of another."""

    @abstractmethod
    def __len__(self) -> int:
        """Number of rows in an epoch."""

    def read_patiently(self) -> None:  # noqa: B027  (only rows that come past need it)
        """From now on whoever reads has more to do than to wait for these rows, and calls ``hurry`` when
        it has not."""

    def hurry(self, waits: bool) -> None:  # noqa: B027
        """Say that whoever reads waits for the next batch, or no longer does."""

    def windows(
        self, seed: int, epoch: int, shuffle_rows: int, taken: int = 0, first: int = 0
    ) -> Iterator[Window]:
        """The windows of ``shuffle_rows`` rows of an epoch that begins with the window at place ``first``
        of its order, without its first ``taken`` rows."""
        among = WindowOrder(len(self), shuffle_rows, seed, epoch, self.sequential, first)
        return windows(among, taken)

    def begins_at(self, seed: int, epoch: int, shuffle_rows: int) -> int:
        """The place in its order of the window that an epoch begins with: the first, but where the rows
        come past anyway and the order need not be reproducible."""
        return 0

    def to(self, device: str) -> "RowSource":
        """The same rows, stored on ``device`` where that is possible; else these rows."""
        return self

    @abstractmethod
    def head(self) -> Iterator[Tensor]:
        """Batches ``[batch, d_in]`` of the first rows, in storage order, that are readable before
        an epoch begins."""

    def survey(self, count: int) -> Iterator[tuple[int, Tensor]]:
        """Batches ``[batch, d_in]`` of at least ``count`` rows (all rows when there are fewer), each
        with the number of its first row; readable before an epoch begins."""
        start = 0
        for batch_BD in self.head():
            if start >= count:
                return
            yield start, batch_BD
            start += len(batch_BD)

    @abstractmethod
    def sample(self, count: int, seed: int, shuffle_rows: int = SHUFFLE_ROWS) -> Tensor:
        """``count`` rows ``[count, d_in]`` drawn by ``seed``; all rows when there are fewer."""

    @abstractmethod
    def without(self, sinks: Sinks) -> "RowSource":
        """The rows that are no sinks."""

    @abstractmethod
    def epoch(
        self,
        seed: int,
        epoch: int,
        batch_size: int,
        shuffle_rows: int = SHUFFLE_ROWS,
        taken: int = 0,
        first: int = 0,
    ) -> Iterator[Tensor]:
        """An epoch's batches ``[batch, d_in]`` after ``taken`` rows; the last may be smaller.

        It begins with the window at place ``first`` of its order.
        """


class IndexedRows(RowSource):
    """Rows of one site and split with random access; they can be read any number of times."""

    @abstractmethod
    def read(self, start: int, stop: int) -> Tensor:
        """Rows ``start`` to ``stop`` in storage order, ``[stop - start, d_in]``."""

    @abstractmethod
    def taken(self, order: Iterator[Window], batch_size: int) -> Iterator[Tensor]:
        """The rows ``[batch, d_in]`` of each window in its order, cut as ``pieces`` cuts them."""

    def to(self, device: str) -> "IndexedRows":
        """The same rows, stored on ``device`` where that is possible; else these rows."""
        return self

    def without(self, sinks: Sinks) -> "IndexedRows":
        """The rows that are no sinks; all rows are read once to find them."""
        ordinary_N = torch.cat([~sinks.are(batch_BD).cpu() for batch_BD in self.batches()])
        return self if bool(ordinary_N.all()) else OrdinaryRows(self, ordinary_N)

    def batches(self, batch_size: int = EVALUATION_BATCH) -> Iterator[Tensor]:
        """All rows in storage order, in batches ``[batch, d_in]``, whatever the blocks."""
        for start in range(0, len(self), batch_size):
            yield self.read(start, min(start + batch_size, len(self)))

    def head(self) -> Iterator[Tensor]:
        """All rows, as ``batches`` reads them."""
        return self.batches()

    def survey(self, count: int) -> Iterator[tuple[int, Tensor]]:
        """See ``RowSource.survey``; the batches are spread evenly over the rows, which may be sorted."""
        for start, stop in surveyed(len(self), count):
            yield start, self.read(start, stop)

    def sample(self, count: int, seed: int, shuffle_rows: int = SHUFFLE_ROWS) -> Tensor:
        """``count`` rows ``[count, d_in]`` drawn by ``seed``; all rows when there are fewer."""
        return next(self.epoch(seed, -1, count, shuffle_rows))

    def epoch(
        self,
        seed: int,
        epoch: int,
        batch_size: int,
        shuffle_rows: int = SHUFFLE_ROWS,
        taken: int = 0,
        first: int = 0,
    ) -> Iterator[Tensor]:
        """An epoch's batches ``[batch, d_in]`` after ``taken`` rows; the last may be smaller.

        It begins with the window at place ``first`` of its order.
        """
        order = self.windows(seed, epoch, shuffle_rows, taken, first)
        return rebatched(self.taken(order, batch_size), batch_size)


def surveyed(rows: int, count: int) -> Iterator[tuple[int, int]]:
    """The first row and the end of each batch that ``IndexedRows.survey`` reads, of ``rows`` rows."""
    batches = math.ceil(min(count, rows) / EVALUATION_BATCH)
    last = max(rows - EVALUATION_BATCH, 0)
    for number in range(batches):
        start = number * EVALUATION_BATCH
        if rows > count:
            start = round(number * last / max(batches - 1, 1))
        yield start, min(start + EVALUATION_BATCH, rows)


class OrdinaryRows(IndexedRows):
    """Those of ``rows`` for which ``ordinary_N [rows]`` is true, in the order of ``rows``.

    Shuffle windows are those of ``rows``, so that they are read as if no row were left out.
    """

    def __init__(self, rows: IndexedRows, ordinary_N: Tensor):
        self.rows, self.d_in, self.ordinary_N = rows, rows.d_in, ordinary_N
        self.sequential, self.passing, self.pace = rows.sequential, rows.passing, rows.pace
        self._place = ordinary_N.nonzero().squeeze(1)

    def __len__(self) -> int:
        return len(self._place)

    def to(self, device: str) -> "OrdinaryRows":
        """See ``IndexedRows.to``."""
        there = self.rows.to(device)
        return self if there is self.rows else OrdinaryRows(there, self.ordinary_N)

    def read(self, start: int, stop: int) -> Tensor:
        """See ``IndexedRows.read``."""
        place = self._place[start:stop]
        if not len(place):
            return self.rows.read(0, 1)[:0]
        first = int(place[0])
        rows_BD = self.rows.read(first, int(place[-1]) + 1)
        return rows_BD[(place - first).to(rows_BD.device)]

    def taken(self, order: Iterator[Window], batch_size: int) -> Iterator[Tensor]:
        """See ``IndexedRows.taken``; the windows are those of ``rows``."""
        return self.rows.taken(order, batch_size)

    def epoch(
        self,
        seed: int,
        epoch: int,
        batch_size: int,
        shuffle_rows: int = SHUFFLE_ROWS,
        taken: int = 0,
        first: int = 0,
    ) -> Iterator[Tensor]:
        """See ``RowSource.epoch``."""
        order = self._ordinary(self.rows.windows(seed, epoch, shuffle_rows, 0, first), taken)
        return rebatched(self.taken(order, batch_size), batch_size)

    def read_patiently(self) -> None:
        """See ``RowSource.read_patiently``."""
        self.rows.read_patiently()

    def hurry(self, waits: bool) -> None:
        """See ``RowSource.hurry``."""
        self.rows.hurry(waits)

    def begins_at(self, seed: int, epoch: int, shuffle_rows: int) -> int:
        """See ``RowSource.begins_at``."""
        return self.rows.begins_at(seed, epoch, shuffle_rows)

    def _ordinary(self, order: Iterator[Window], taken: int) -> Iterator[Window]:
        """The windows without the other rows, and without the first ``taken`` rows."""
        for window in order:
            kept = window.order[self.ordinary_N[window.start + window.order]]
            if taken < len(kept):
                yield replace(window, order=kept[taken:])
            taken = max(taken - len(kept), 0)


class Stream:
    """Batches ``[batch, d_in]`` over several epochs; ``position`` is where the next one starts."""

    def __init__(
        self,
        source: RowSource,
        *,
        seed: int,
        epochs: int,
        batch_size: int,
        shuffle_rows: int = SHUFFLE_ROWS,
        position: StreamPosition | None = None,
    ):
        self.source, self.seed, self.epochs = source, seed, epochs
        self.batch_size, self.shuffle_rows = batch_size, shuffle_rows
        self.position = position or StreamPosition()

    def __iter__(self) -> Iterator[Tensor]:
        for batch_BD, position in self.placed():
            self.position = position
            yield batch_BD

    def placed(self) -> Generator[tuple[Tensor, StreamPosition]]:
        """The batches from ``position`` on, each with the position after it.

        This iterator does not move ``position``; the caller sets it.
        """
        epoch, taken, first = self.position.epoch, self.position.rows, self.position.first
        while epoch < self.epochs:
            if not taken:
                first = self.source.begins_at(self.seed, epoch, self.shuffle_rows)
            for batch_BD in self.source.epoch(
                self.seed, epoch, self.batch_size, self.shuffle_rows, taken, first
            ):
                taken += len(batch_BD)
                last = taken == len(self.source)
                following = StreamPosition(epoch + 1) if last else None
                yield batch_BD, following or StreamPosition(epoch, taken, first)
            if taken < len(self.source):
                return  # the source has fewer rows than it said
            epoch, taken = epoch + 1, 0


@dataclass(frozen=True)
class Splits:
    """A site's training rows and validation rows."""

    train: IndexedRows
    validation: IndexedRows
    truth: Truth | None = None
    """The true atoms and where they fire, where the rows are synthetic."""


def same_d_in(train: RowSource, validation: IndexedRows) -> None:
    """Raises ValueError when training and validation rows have a different d_in."""
    if validation.d_in != train.d_in:
        raise ValueError(f"training rows have d_in {train.d_in}, validation rows {validation.d_in}")


class Rows(IndexedRows):
    """Rows in memory: one or more blocks ``[*, d_in]``, such as views of shared memory, not copied.

    Raises ValueError when all blocks are empty or have no common d_in.
    """

    def __init__(self, blocks: Tensor | Sequence[Tensor], sequential: bool = False):
        self.sequential = sequential
        blocks = [blocks] if isinstance(blocks, Tensor) else list(blocks)
        self.blocks = [block for block in blocks if len(block)]
        if not self.blocks:
            raise ValueError("no rows: every block is empty")
        shapes = {tuple(block.shape[1:]) for block in self.blocks}
        if len(shapes) != 1 or len(next(iter(shapes))) != 1:
            raise ValueError(f"rows must be [rows, d_in] of one d_in; found {sorted(shapes)}")
        self.d_in = self.blocks[0].shape[1]
        self._starts = torch.tensor([0, *(len(block) for block in self.blocks)]).cumsum(0)
        self._rows = int(self._starts[-1])

    @property
    def dtype(self) -> torch.dtype:
        """The storage dtype."""
        return self.blocks[0].dtype

    @property
    def nbytes(self) -> int:
        """Bytes of all rows."""
        return sum(block.nbytes for block in self.blocks)

    def __len__(self) -> int:
        return self._rows

    def to(self, device: str) -> "Rows":
        """The same rows on ``device``, one copy a process; where they do not fit there, these rows."""
        return placed(self, device, Rows)

    def read(self, start: int, stop: int) -> Tensor:
        """Rows ``start`` to ``stop`` in storage order, ``[stop - start, d_in]``, a copy."""
        parts = zip(self.blocks, self._starts.tolist(), strict=False)
        return torch.cat([block[max(start - at, 0) : max(stop - at, 0)] for block, at in parts])

    def taken(self, order: Iterator[Window], batch_size: int) -> Iterator[Tensor]:
        """The rows ``[batch, d_in]`` of each window in its order, cut as ``pieces`` cuts them."""
        for window, index_B in pieces(order, batch_size):
            yield self.gather(index_B + window.start if window.start else index_B)

    def gather(self, index_B: Tensor) -> Tensor:
        """The rows numbered ``index_B``, in that order, ``[batch, d_in]``."""
        return gathered(self.blocks, self._starts, index_B)


def rebatched(parts: Iterable[Tensor], batch_size: int) -> Iterator[Tensor]:
    """The rows of ``parts``, in order, in batches of ``batch_size``; the last may be smaller."""
    waiting: list[Tensor] = []
    count = 0
    for part_ND in parts:
        start = 0
        while count + len(part_ND) - start >= batch_size:
            end = start + batch_size - count
            yield _joined([*waiting, part_ND[start:end]])
            waiting, count, start = [], 0, end
        if start < len(part_ND):
            waiting.append(part_ND[start:])
            count += len(part_ND) - start
    if waiting:
        yield _joined(waiting)


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)
