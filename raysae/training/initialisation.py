"""Where training starts from: the input scale and the decoder bias.

Shapes: B batch, D d_in.
"""

import math

from torch import Tensor

from raysae.training.rows import Rows

MEDIAN_SAMPLE = 4096


def input_scale(rows: Rows) -> float:
    """The factor that brings the mean square norm of ``rows`` to d_in (1 for rows of zeros)."""
    square = sum(float(batch.double().square().sum()) for batch in rows.batches())
    return math.sqrt(rows.d_in * len(rows) / square) if square else 1.0


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


def median_of_sample(rows: Rows, seed: int) -> Tensor:
    """The geometric median of at most ``MEDIAN_SAMPLE`` rows, drawn by ``seed``."""
    return geometric_median(rows.gather(rows.order(seed, epoch=-1)[:MEDIAN_SAMPLE]))
