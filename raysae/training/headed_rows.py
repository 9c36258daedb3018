"""Rows whose first part is known before training: statistics come from that head alone.

Live data passes once, so nothing else of it can be looked at before. Rows that were kept are read in
the same order and begin with the same statistics, and so give the same bits. Shapes: D d_in.
"""

from collections.abc import Callable, Iterator

from torch import Tensor

from raysae.training.rows import EVALUATION_BATCH, SHUFFLE_ROWS, IndexedRows, Rows
from raysae.training.windows import Window


class HeadedRows(IndexedRows):
    """``rows``, read window after window in storage order; ``head`` gives their first rows ``[*, D]``."""

    sequential = True

    def __init__(self, rows: IndexedRows, head: Callable[[], Tensor]):
        self.rows, self.d_in, self._head = rows, rows.d_in, head
        self.passing, self.pace = rows.passing, rows.pace

    def __len__(self) -> int:
        return len(self.rows)

    def to(self, device: str) -> "HeadedRows":
        """See ``IndexedRows.to``."""
        there = self.rows.to(device)
        return self if there is self.rows else HeadedRows(there, self._head)

    def read(self, start: int, stop: int) -> Tensor:
        """See ``IndexedRows.read``."""
        return self.rows.read(start, stop)

    def batches(self, batch_size: int = EVALUATION_BATCH) -> Iterator[Tensor]:
        """See ``IndexedRows.batches``."""
        return self.rows.batches(batch_size)

    def taken(self, order: Iterator[Window], batch_size: int) -> Iterator[Tensor]:
        """See ``IndexedRows.taken``."""
        return self.rows.taken(order, batch_size)

    def read_patiently(self) -> None:
        """See ``RowSource.read_patiently``."""
        self.rows.read_patiently()

    def hurry(self, waits: bool) -> None:
        """See ``RowSource.hurry``."""
        self.rows.hurry(waits)

    def head(self) -> Iterator[Tensor]:
        """The head, in batches ``[batch, d_in]``."""
        return self._first.head()

    def survey(self, count: int) -> Iterator[tuple[int, Tensor]]:
        """See ``RowSource.survey``; of the head."""
        return self._first.survey(count)

    def sample(self, count: int, seed: int, shuffle_rows: int = SHUFFLE_ROWS) -> Tensor:
        """``count`` rows ``[count, d_in]`` of the head, drawn by ``seed``."""
        return self._first.sample(count, seed, shuffle_rows)

    @property
    def _first(self) -> Rows:
        return Rows(self._head())
