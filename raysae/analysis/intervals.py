"""Intervals of estimates: the bootstrap's percentiles, and a share's by Wilson's formula.

Shapes: S texts or other units, R draws.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

DRAWS = 1000
"""Samples of a bootstrap."""
VALUES_AT_ONCE = 2**22
CONFIDENCE = 0.95
Z = 1.959963984540054
"""The reach of a 95% interval of a normal distribution, in its standard deviations."""
Interval = tuple[float, float]


def bootstrap_ratio(
    above: Sequence[float] | NDArray[Any], below: Sequence[float] | NDArray[Any] | None, seed: int
) -> Interval:
    """The 95% interval of ``sum(above) / sum(below)`` over units that are drawn with replacement.

    Without ``below`` it is that of the mean. The percentile bootstrap (Efron 1979) with 1,000 draws; NaN
    without a unit.
    """
    top = np.asarray(above, np.float64)
    under = np.ones(len(top)) if below is None else np.asarray(below, np.float64)
    return bootstrap(lambda drawn: _ratio(top[drawn].sum(axis=1), under[drawn].sum(axis=1)),
                     len(top), seed)  # fmt: skip


def _ratio(top: NDArray[np.float64], under: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.divide(top, under, out=np.full_like(top, np.nan), where=under != 0)


def bootstrap(
    statistic: Callable[[NDArray[np.int64]], NDArray[np.float64]], units: int, seed: int
) -> Interval:
    """The 95% interval of a statistic of ``units`` units that are drawn with replacement.

    ``statistic`` gives the value of each of several draws ``[draws, units]`` (numbers of units).
    """
    if not units:
        return math.nan, math.nan
    random = np.random.default_rng(seed)
    together = max(VALUES_AT_ONCE // units, 1)
    found = [
        statistic(random.integers(units, size=(min(together, DRAWS - start), units)))
        for start in range(0, DRAWS, together)
    ]
    low, high = np.nanquantile(np.concatenate(found), [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def draws_of(texts: int, seed: int, draws: int = DRAWS) -> NDArray[np.float64]:
    """How often each text is in each draw, ``[R, S]``."""
    generator = np.random.default_rng(seed)
    return generator.multinomial(texts, np.full(texts, 1 / texts), size=draws).astype(np.float64)


def limits(values: NDArray) -> tuple[float, float]:
    """The 95% interval of the values, those that are no number left out."""
    finite = values[np.isfinite(values)]
    if not len(finite):
        return float("nan"), float("nan")
    edge = 100 * (1 - CONFIDENCE) / 2
    low, high = np.percentile(finite, [edge, 100 - edge])
    return float(low), float(high)


def ratio(numerator: NDArray, denominator: NDArray, least: float = 0.0) -> NDArray:
    """The ratio; NaN where the denominator's size is at most ``least``."""
    defined = np.abs(denominator) > least
    return np.where(defined, numerator / np.where(defined, denominator, 1.0), np.nan)


def wilson(successes: int, n: int) -> Interval:
    """The 95% interval of a share of ``n`` by Wilson (1927); NaN when ``n`` is 0."""
    if not n:
        return math.nan, math.nan
    low, high = wilson_of(np.array([successes]), n)
    return float(low[0]), float(high[0])


def wilson_of(successes: NDArray[np.int64], n: int) -> tuple[NDArray, NDArray]:
    """The same of many shares of ``n``, which is above 0."""
    share = successes / n
    middle = (share + Z * Z / (2 * n)) / (1 + Z * Z / n)
    reach = Z / (1 + Z * Z / n) * np.sqrt(share * (1 - share) / n + Z * Z / (4 * n * n))
    return np.maximum(middle - reach, 0.0), np.minimum(middle + reach, 1.0)


def interval_text(interval: Interval, form: str = "{:.3f}") -> str:
    """Such as ``0.410 to 0.520``; ``no interval`` where it is undefined."""
    if any(math.isnan(end) for end in interval):
        return "no interval"
    return " to ".join(form.format(end) for end in interval)


def known(value: float) -> float | None:
    """The value, or None where it is undefined, as JSON and tables keep it."""
    return value if math.isfinite(value) else None
