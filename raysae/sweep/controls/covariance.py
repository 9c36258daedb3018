"""The covariance of a site's rows, and the two controls that follow from it: PCA and Gaussian rows.

Shapes: N rows, B batch, D d_in.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from raysae.sae.metrics import mean_of_rows
from raysae.training.rows import IndexedRows, surveyed
from raysae.training.windows import Window, pieces

LEAST_ROWS, ROWS_A_DIMENSION, MULTIPLICATIONS = 2**16, 32, 4e10
"""A covariance is that of all rows, or of a sample of at least so many rows, of so many for each
dimension, and of as many as so many multiplications allow."""
BLOCK = 4096
"""Gaussian rows that are drawn together."""


@dataclass(frozen=True)
class Covariance:
    """Mean and covariance of some rows, the latter by its eigenvectors; all in float64."""

    rows: int
    """The number of rows that they are of."""
    mean_D: Tensor
    values_D: Tensor
    """The eigenvalues, the largest first."""
    vectors_DD: Tensor
    """The eigenvectors, as columns in that order."""

    @classmethod
    def of_rows(cls, rows: IndexedRows, device: str = "cpu") -> "Covariance":
        """That of all rows ``[rows, d_in]``, or of a sample spread evenly over very many."""
        width = rows.d_in
        most = max(LEAST_ROWS, ROWS_A_DIMENSION * width, int(MULTIPLICATIONS / width**2))
        count, first_D = 0, None
        gram_DD = torch.zeros(width, width, dtype=torch.float64, device=device)
        total_D = torch.zeros(width, dtype=torch.float64, device=device)
        for start, stop in surveyed(len(rows), most):
            batch_BD = rows.read(start, stop).to(device).double()
            first_D = batch_BD.mean(dim=0) if first_D is None else first_D
            offset_BD = batch_BD - first_D  # around a row's size, not around 0: squares stay exact
            gram_DD += offset_BD.T @ offset_BD
            total_D += offset_BD.sum(dim=0)
            count += len(batch_BD)
        assert first_D is not None
        shift_D = total_D / count
        values_D, vectors_DD = torch.linalg.eigh(gram_DD / count - torch.outer(shift_D, shift_D))
        return cls(count, first_D + shift_D, values_D.flip(0).clamp_min(0), vectors_DD.flip(1))

    def explained(self, held_out: IndexedRows) -> list[float]:
        """The explained variance of ``held_out`` by the first 0, 1, 2, ... and all components; NaN where
        the rows are all the same."""
        held_mean_D = mean_of_rows(held_out.batches()).to(self.mean_D)
        captured_D, around_mean, total = torch.zeros_like(self.mean_D), 0.0, 0.0
        for batch_BD in held_out.batches():
            offset_BD = batch_BD.to(self.mean_D) - self.mean_D
            captured_D += (offset_BD @ self.vectors_DD).square().sum(dim=0)
            around_mean += float(offset_BD.square().sum())
            total += float((batch_BD.to(self.mean_D) - held_mean_D).square().sum())
        left = around_mean - torch.cat([captured_D.new_zeros(1), captured_D.cumsum(0)])
        return (1 - left / total).tolist() if total else [math.nan] * (len(captured_D) + 1)


def components_to_reach(explained: list[float], wanted: float) -> int | None:
    """The fewest components that explain ``wanted``; None when all of them do not."""
    reaching = (count for count, value in enumerate(explained) if value >= wanted)
    return next(reaching, None)


class GaussianRows(IndexedRows):
    """``count`` Gaussian rows ``[count, d_in]`` with the mean and the covariance of other rows, float32.

    They hold nothing but that covariance. Each stream, 0, 1, and so on, of a seed is another draw, made
    while it is read. As no row depends on another, they are read in their order.
    """

    def __init__(
        self, like: Covariance, count: int, seed: int, stream: int = 0, device: str = "cpu"
    ):
        self.like, self.count, self.seed, self.stream = like, count, seed, stream
        self.device, self.d_in = device, len(like.mean_D)
        self._mean_D = like.mean_D.to(device).float()
        spread_DD = like.vectors_DD * like.values_D.sqrt()
        self._spread_DD = spread_DD.T.to(device).float().contiguous()
        self._block: tuple[int, Tensor] | None = None

    def __len__(self) -> int:
        return self.count

    def to(self, device: str) -> "GaussianRows":
        """The same kind of rows, drawn on ``device``."""
        if device == self.device:
            return self
        return GaussianRows(self.like, self.count, self.seed, self.stream, device)

    def read(self, start: int, stop: int) -> Tensor:
        """See ``IndexedRows.read``."""
        parts = []
        for number in range(start // BLOCK, max(math.ceil(stop / BLOCK), start // BLOCK + 1)):
            first = number * BLOCK
            parts.append(self._drawn(number)[max(start - first, 0) : max(stop - first, 0)])
        return torch.cat(parts)

    def taken(self, order: Iterator[Window], batch_size: int) -> Iterator[Tensor]:
        """Batches ``[batch, d_in]`` of each window, in the order of the rows' numbers."""
        read: tuple[Window, int] | None = None
        for window, index_B in pieces(order, batch_size):
            if read is None or read[0] is not window:
                read = window, window.start + window.rows - len(window.order)
            start = read[1]
            yield self.read(start, start + len(index_B))
            read = window, start + len(index_B)

    def _drawn(self, number: int) -> Tensor:
        """The rows of a block, ``[BLOCK, d_in]``."""
        if self._block is None or self._block[0] != number:
            mixed = np.random.SeedSequence((self.seed, self.stream, number)).generate_state(1)
            generator = torch.Generator(self.device).manual_seed(int(mixed[0]))
            shape = (BLOCK, self.d_in)
            normal_BD = torch.randn(shape, generator=generator, device=self.device)
            self._block = number, normal_BD @ self._spread_DD + self._mean_D
        return self._block[1]
