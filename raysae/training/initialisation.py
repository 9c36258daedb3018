"""Initial values of a training: the input scale, the decoder bias and the size of the encoder.

Shapes: B batch, D d_in.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from raysae.sae import SAE
from raysae.sae.metrics import mean_of_rows
from raysae.sae.topk import KSAE
from raysae.training.rows import IndexedRows, RowSource

MEDIAN_SAMPLE = 4096
SCALE_SAMPLE = 262_144
ENCODER_SIZE = 0.05


class InputStatistics(NamedTuple):
    """Statistics of the rows that a training needs before its first step."""

    scale: float
    """Factor by which the rows are multiplied; see ``input_scale``."""
    median_D: Tensor
    """Geometric median of the training rows, ``[d_in]``, unscaled."""
    validation_mean_D: Tensor
    """Mean of the validation rows, ``[d_in]``, unscaled."""


def input_statistics(
    train: RowSource, validation: IndexedRows, seed: int, shuffle_rows: int
) -> InputStatistics:
    """The statistics for a training on ``train`` that is evaluated on ``validation``.

    Raises ValueError when there are no validation rows.
    """
    return InputStatistics(
        input_scale(train),
        geometric_median(train.sample(MEDIAN_SAMPLE, seed, shuffle_rows).float()),
        mean_of_rows(batch_BD.float() for batch_BD in validation.batches()),
    )


class StatisticsCache:
    """Computes the statistics of rows once for all trainings that use the same rows and seed."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, int, int, int], InputStatistics] = {}
        self._rows: list[RowSource] = []  # referenced, so that no other object gets their ids

    def of(
        self, train: RowSource, validation: IndexedRows, seed: int, shuffle_rows: int
    ) -> InputStatistics:
        """The result of ``input_statistics`` for these arguments."""
        key = id(train), id(validation), seed, shuffle_rows
        if key not in self._known:
            self._known[key] = input_statistics(train, validation, seed, shuffle_rows)
            self._rows += [train, validation]
        return self._known[key]


def input_scale(rows: RowSource) -> float:
    """The factor that makes the mean square norm of ``rows`` equal to d_in (1 for rows of zeros).

    It is measured on about the first ``SCALE_SAMPLE`` rows, in whole batches.
    """
    square, count = 0.0, 0
    for batch_BD in rows.head():
        if count >= SCALE_SAMPLE:
            break
        square += float(batch_BD.double().square().sum())
        count += len(batch_BD)
    return math.sqrt(rows.d_in * count / square) if square else 1.0


def geometric_median(x_BD: Tensor, iterations: int = 100, tolerance: float = 1e-6) -> Tensor:
    """The point ``[d_in]`` with the least sum of distances to the rows (Weiszfeld's algorithm)."""
    mean_D = x_BD.mean(dim=0)
    x_BD = x_BD - mean_D  # a common offset would cost the squares below their precision
    square_B = x_BD.square().sum(dim=1)
    median_D = torch.zeros_like(mean_D)
    for _ in range(iterations):
        distance_B = (
            (square_B - 2 * (x_BD @ median_D) + median_D.square().sum()).clamp_min(0).sqrt()
        )
        weight_B = 1 / distance_B.clamp_min(1e-9)
        moved_D = (weight_B @ x_BD) / weight_B.sum()
        step = float((moved_D - median_D).norm())
        median_D = moved_D
        if step <= tolerance * float((mean_D + median_D).norm()):
            break
    return mean_D + median_D


@torch.no_grad()
def shrink_encoder(model: SAE) -> None:
    """Scale the initial encoder of TopK variants to ``ENCODER_SIZE`` of the decoder's size, in
    place.

    The size does not change which latents are selected. But reconstructions start small, and Adam
    turns small rows faster, which helps short trainings: 50 steps reach an explained variance of
    0.53 instead of 0.47 (d_in 768, d_sae 6144, k 64). After thousands of steps there is no
    difference. SAELens uses a factor of 0.1.
    """
    if isinstance(model, KSAE):
        model.W_enc.mul_(ENCODER_SIZE)
