"""Where training starts from: the input scale and the decoder bias.

Shapes: B batch, D d_in.
"""

import math
from typing import NamedTuple

from torch import Tensor

from raysae.sae.metrics import mean_of_rows
from raysae.training.rows import RowSource

MEDIAN_SAMPLE = 4096
SCALE_SAMPLE = 262_144


class Footing(NamedTuple):
    """What a training takes from its rows before the first step."""

    scale: float
    """Factor of the input."""
    median_D: Tensor
    """Geometric median of the training rows."""
    validation_mean_D: Tensor


def footing(train: RowSource, validation: RowSource, seed: int, shuffle_rows: int) -> Footing:
    """The footing of a training on ``train``, measured on ``validation``."""
    return Footing(
        input_scale(train),
        median_of_sample(train, seed, shuffle_rows),
        mean_of_rows(batch_BD.float() for batch_BD in validation.batches()),
    )


def input_scale(rows: RowSource) -> float:
    """The factor that brings the mean square norm of ``rows`` to d_in (1 for rows of zeros).

    Measured on the first ``SCALE_SAMPLE`` rows.
    """
    square, count = 0.0, 0
    for batch_BD in rows.batches():
        if count >= SCALE_SAMPLE:
            break
        square += float(batch_BD.double().square().sum())
        count += len(batch_BD)
    return math.sqrt(rows.d_in * count / square) if square else 1.0


def geometric_median(x_BD: Tensor, iterations: int = 100, tolerance: float = 1e-6) -> Tensor:
    """The point ``[d_in]`` with the least summed distance to the rows (Weiszfeld's iteration)."""
    x_BD = x_BD.double()
    median_D = x_BD.mean(dim=0)
    for _ in range(iterations):
        weight_B = 1 / (x_BD - median_D).norm(dim=1).clamp_min(1e-9)
        moved_D = (weight_B[:, None] * x_BD).sum(dim=0) / weight_B.sum()
        step = float((moved_D - median_D).norm())
        median_D = moved_D
        if step <= tolerance * float(median_D.norm()):
            break
    return median_D.float()


def median_of_sample(rows: RowSource, seed: int, shuffle_rows: int) -> Tensor:
    """The geometric median of at most ``MEDIAN_SAMPLE`` rows, drawn by ``seed``."""
    return geometric_median(rows.sample(MEDIAN_SAMPLE, seed, shuffle_rows).float())
