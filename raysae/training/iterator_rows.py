"""Rows of an iterator: read once, in the order they arrive, never all in memory.

Shapes: N rows, D d_in.
"""

import warnings
from collections.abc import Iterator
from itertools import chain

import torch
from torch import Tensor

from raysae.sae.metrics import Sinks
from raysae.training.rows import EVALUATION_BATCH, SHUFFLE_ROWS, RowSource, rebatched, windows

HEAD_ROWS = 65_536
"""Rows read ahead for the input scale and the geometric median; training uses them, too."""


class IteratorRows(RowSource):
    """The first ``rows`` rows of an iterator over batches ``[*, d_in]``: one epoch, in the order of
    the iterator but shuffled within windows.

    ``len`` is the number of rows to train on; how many the iterator has is known only at its end.
    Raises ValueError when the iterator yields nothing, or a batch that is no tensor ``[*, d_in]``
    of one d_in.
    """

    def __init__(self, batches: Iterator[Tensor], rows: int):
        self._rest, self.rows, self.d_in = batches, rows, 0
        self._sinks: Sinks | None = None
        head, count = [], 0
        while count < min(rows, HEAD_ROWS) and (batch_ND := next(self._rest, None)) is not None:
            head.append(self._checked(batch_ND))
            count += len(batch_ND)
        if not count:
            raise ValueError("no rows: the iterator gave none")
        self._head_ND = torch.cat(head)
        self._begun = False

    def __len__(self) -> int:
        return self.rows

    def head(self) -> Iterator[Tensor]:
        """The rows read ahead, about ``HEAD_ROWS``, as batches ``[batch, d_in]``."""
        return iter(self._head_ND.split(EVALUATION_BATCH))

    def sample(self, count: int, seed: int, shuffle_rows: int = SHUFFLE_ROWS) -> Tensor:
        """``count`` rows ``[count, d_in]`` of the head, drawn at random by ``seed``."""
        (window,) = windows(len(self._head_ND), len(self._head_ND), seed, -1)
        return self._head_ND[window.order[:count]]

    def without(self, sinks: Sinks) -> "IteratorRows":
        """These rows, of which the sinks are left out from now on; ``len`` stays the same."""
        if self._sinks is None:
            self._sinks = sinks
            self._head_ND = self._kept(self._head_ND)
        return self

    def _kept(self, batch_ND: Tensor) -> Tensor:
        return batch_ND if self._sinks is None else batch_ND[~self._sinks.are(batch_ND)]

    def epoch(
        self,
        seed: int,
        epoch: int,
        batch_size: int,
        shuffle_rows: int = SHUFFLE_ROWS,
        taken: int = 0,
    ) -> Iterator[Tensor]:
        """The batches ``[batch, d_in]`` after the first ``taken`` rows.

        Raises ValueError when it is called a second time.
        """
        if self._begun:
            raise ValueError("an iterator can be trained on once; make a new one")
        self._begun = True
        return rebatched(self._shuffled(seed, batch_size, shuffle_rows, taken), batch_size)

    def _shuffled(
        self, seed: int, batch_size: int, shuffle_rows: int, taken: int
    ) -> Iterator[Tensor]:
        for number, rows_ND in enumerate(rebatched(self._all(), shuffle_rows)):
            (window,) = windows(len(rows_ND), len(rows_ND), seed * 1_000_003 + number, 0)
            skipped = min(taken, len(rows_ND))
            taken -= skipped
            for index_B in window.order[skipped:].split(batch_size):
                if len(index_B):
                    yield rows_ND.index_select(0, index_B.to(rows_ND.device))

    def _all(self) -> Iterator[Tensor]:
        """The head, then the rest of the iterator; ``rows`` rows in all."""
        left = self.rows
        for batch_ND in chain([self._head_ND], map(self._kept, map(self._checked, self._rest))):
            yield batch_ND[:left]
            left -= min(left, len(batch_ND))
            if not left:
                return
        warnings.warn(
            f"the iterator ended {left:,} rows before the {self.rows:,} of training.tokens; "
            "training ends early, before its learning rate has fallen to 0",
            stacklevel=2,
        )

    def _checked(self, batch_ND: Tensor) -> Tensor:
        shape = tuple(getattr(batch_ND, "shape", ()))
        if not isinstance(batch_ND, Tensor) or len(shape) != 2 or self.d_in not in (0, shape[1]):
            wanted = f"[rows, {self.d_in}]" if self.d_in else "[rows, d_in]"
            found = list(shape) if isinstance(batch_ND, Tensor) else type(batch_ND).__name__
            raise ValueError(f"the iterator gave {found}; every batch must be a tensor {wanted}")
        self.d_in = shape[1]
        return batch_ND
