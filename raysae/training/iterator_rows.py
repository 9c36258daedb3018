"""Rows of an iterator: read once, in the order they arrive, never all in memory.

Shapes: N rows, D d_in.
"""

import warnings
from collections.abc import Iterator
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor

from raysae.sae.metrics import Sinks
from raysae.training.conversion import as_rows
from raysae.training.finite import refuse_non_finite
from raysae.training.rows import EVALUATION_BATCH, SHUFFLE_ROWS, RowSource, rebatched
from raysae.training.windows import one_window

HEAD_ROWS = 65_536
"""Rows read ahead for the input scale and the geometric median; training uses them, too."""


class IteratorRows(RowSource):
    """The first ``rows`` rows of an iterator over batches ``[*, d_in]``: one epoch, in the order of
    the iterator but shuffled within windows.

    ``len`` is the number of rows to train on; how many the iterator has is known only at its end.
    Batches are tensors or numpy arrays. Raises ValueError when the iterator yields nothing, or a
    batch that is not ``[*, d_in]`` of one d_in and dtype; NonFiniteRowsError when a row is not finite.
    """

    def __init__(self, batches: Iterator[Tensor], rows: int):
        self._rest, self.rows, self.d_in = batches, rows, 0
        self._sinks: Sinks | None = None
        self._dtype: torch.dtype | None = None
        self._batches_read = self._rows_read = 0
        head, count = [], 0
        for given in self._rest:
            head.append(self._checked(given))
            count += len(head[-1])
            if count >= min(rows, HEAD_ROWS):
                break
        if not count:
            raise ValueError("train has no rows: the iterator gave none")
        self._head_ND = torch.cat(head)
        self._begun = False

    def __len__(self) -> int:
        return self.rows

    def head(self) -> Iterator[Tensor]:
        """The rows read ahead, about ``HEAD_ROWS``, as batches ``[batch, d_in]``."""
        return iter(self._head_ND.split(EVALUATION_BATCH))

    def sample(self, count: int, seed: int, shuffle_rows: int = SHUFFLE_ROWS) -> Tensor:
        """``count`` rows ``[count, d_in]`` of the head, drawn at random by ``seed``."""
        window = one_window(len(self._head_ND), seed, -1)
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
        first: int = 0,
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
            window = one_window(len(rows_ND), seed * 1_000_003 + number, 0)
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

    def _checked(self, given: Any) -> Tensor:
        """A batch of the iterator as rows of the first batch's d_in and dtype, all finite."""
        batch = f"batch {self._batches_read} of train"
        if isinstance(given, tuple | list) and len(given) and isinstance(given[0], Tensor):
            raise ValueError(
                f"{batch}: the iterator gave a {type(given).__name__} of {len(given)}; every batch "
                "must be a tensor [rows, d_in], such as of (batch[0] for batch in loader)"
            )
        if not isinstance(given, Tensor | np.ndarray):
            raise ValueError(
                f"{batch}: the iterator gave {type(given).__name__}; every batch must be a tensor "
                "[rows, d_in]"
            )
        wanted = f"[rows, {self.d_in}]" if self.d_in else "[rows, d_in]"
        if given.ndim != 2 or self.d_in not in (0, given.shape[1]):
            raise ValueError(
                f"{batch}: the iterator gave {list(given.shape)}; every batch must be a tensor {wanted}"
            )
        batch_ND = as_rows(given, batch)
        if self._dtype not in (None, batch_ND.dtype):
            raise ValueError(f"{batch} is {batch_ND.dtype}, those before it {self._dtype}")
        refuse_non_finite(batch_ND, "train", self._rows_read)
        self.d_in, self._dtype = batch_ND.shape[1], batch_ND.dtype
        self._batches_read, self._rows_read = (
            self._batches_read + 1,
            self._rows_read + len(batch_ND),
        )
        return batch_ND
