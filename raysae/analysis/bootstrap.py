"""Intervals of figures that are functions of sums over texts: the texts are drawn again with replacement.

Shapes: S texts, R draws, C columns.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

DRAWS = 1000
LEVEL = 0.95
"""An interval covers this share of the draws."""

Figure = Callable[[NDArray[np.float64]], NDArray[np.float64]]
"""Maps sums ``[R, C]`` to a figure of each draw, ``[R]`` or ``[R, figures]``."""


def draws_of(texts: int, seed: int, draws: int = DRAWS) -> NDArray[np.float64]:
    """How often each text is in each draw, ``[R, S]``."""
    generator = np.random.default_rng(seed)
    return generator.multinomial(texts, np.full(texts, 1 / texts), size=draws).astype(np.float64)


def interval(
    sums_SC: NDArray, figure: Figure, seed: int, draws: int = DRAWS
) -> tuple[float, float]:
    """The 95% interval of a figure of the columns' sums over texts: percentiles of the bootstrap.

    NaN where the figure is undefined in every draw.
    """
    return limits(figure(draws_of(len(sums_SC), seed, draws) @ sums_SC))


def limits(values: NDArray) -> tuple[float, float]:
    """The 95% interval of the values, those that are no number left out."""
    known = values[np.isfinite(values)]
    if not len(known):
        return float("nan"), float("nan")
    edge = 100 * (1 - LEVEL) / 2
    low, high = np.percentile(known, [edge, 100 - edge])
    return float(low), float(high)


def ratio(numerator: NDArray, denominator: NDArray, least: float = 0.0) -> NDArray:
    """The ratio; NaN where the denominator's size is at most ``least``."""
    defined = np.abs(denominator) > least
    return np.where(defined, numerator / np.where(defined, denominator, 1.0), np.nan)
