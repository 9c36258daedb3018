"""Figures of predicted probabilities: AUROC, balanced accuracy, calibration, with bootstrap intervals.

Shapes: N sequences, G groups of repeated texts, B bootstrap draws, U different scores.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

BINS = 10
"""Bins of equal width of a reliability plot and of the expected calibration error."""
WEIGHTS = 2**22
"""Weights of a bootstrap in memory at a time."""
LEVEL = 0.95
"""The level of every interval."""
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A figure with its interval at ``LEVEL``, and its standard error."""

    value: float
    low: float
    high: float
    error: float

    def within(self, tests: int) -> tuple[float, float]:
        """The interval that holds for the best of ``tests`` figures (Bonferroni, normal)."""
        reach = normal_quantile(1 - (1 - LEVEL) / 2 / max(tests, 1)) * self.error
        return self.value - reach, self.value + reach

    def columns(self, name: str) -> dict[str, float]:
        """The figure as columns of a table's row."""
        return {
            name: self.value, f"{name}_low": self.low, f"{name}_high": self.high,
            f"{name}_error": self.error,
        }  # fmt: skip


def normal_quantile(share: float) -> float:
    """The standard normal distribution's quantile."""
    from scipy.special import ndtri

    return float(ndtri(share))


def auroc(label_N: NDArray[np.bool_], score_N: Floats) -> float:
    """The area under the ROC curve: how often a positive scores above a negative, ties counting half."""
    return float(weighted_auroc(label_N, score_N)(np.ones((1, len(label_N))))[0])


def weighted_auroc(label_N: NDArray[np.bool_], score_N: Floats) -> Callable[[NDArray[Any]], Floats]:
    """What gives the AUROC ``[B]`` under weights ``[B, N]`` of the sequences; NaN without one class."""
    order = np.argsort(score_N, kind="stable")
    start_U = np.flatnonzero(np.diff(score_N[order], prepend=np.nan) != 0)
    positive_N = label_N[order].astype(np.float64)

    def of(weight_BN: NDArray[Any]) -> Floats:
        weight_BN = weight_BN[:, order]
        above_BU = np.add.reduceat(weight_BN * positive_N, start_U, axis=1)
        below_BU = np.add.reduceat(weight_BN * (1 - positive_N), start_U, axis=1)
        under_BU = np.cumsum(below_BU, axis=1) - below_BU / 2
        pairs_B = above_BU.sum(axis=1) * below_BU.sum(axis=1)
        won_B = (above_BU * under_BU).sum(axis=1)
        return np.divide(won_B, pairs_B, out=np.full(len(pairs_B), np.nan), where=pairs_B > 0)

    return of


def balanced_accuracy(
    label_N: NDArray[np.bool_], decided_N: NDArray[np.bool_]
) -> Callable[[NDArray[Any]], Floats]:
    """What gives, under weights ``[B, N]``, the mean of the shares of both classes decided right."""
    right_N = (label_N == decided_N).astype(np.float64)

    def of(weight_BN: NDArray[Any]) -> Floats:
        shares = []
        for here_N in (label_N, ~label_N):
            total_B = weight_BN[:, here_N].sum(axis=1)
            found_B = weight_BN[:, here_N] @ right_N[here_N]
            shares.append(
                np.divide(found_B, total_B, out=np.full(len(total_B), np.nan), where=total_B > 0)
            )
        return (shares[0] + shares[1]) / 2

    return of


def brier(label_N: NDArray[np.bool_], score_N: Floats) -> Callable[[NDArray[Any]], Floats]:
    """What gives, under weights ``[B, N]``, the mean square difference of probability and outcome."""
    square_N = (score_N - label_N) ** 2
    return lambda weight_BN: (weight_BN @ square_N) / weight_BN.sum(axis=1)


@dataclass(frozen=True)
class Bin:
    """The sequences whose predicted probability lies between two numbers."""

    low: float
    high: float
    n: int
    predicted: float
    """The mean predicted probability."""
    observed: float
    """The share that is positive."""


def reliability(label_N: NDArray[np.bool_], score_N: Floats) -> list[Bin]:
    """The bins that hold a sequence."""
    place_N = np.minimum((score_N * BINS).astype(int), BINS - 1)
    return [
        Bin(
            place / BINS, (place + 1) / BINS, int(here_N.sum()), float(score_N[here_N].mean()),
            float(label_N[here_N].mean()),
        )
        for place in range(BINS)
        if (here_N := place_N == place).any()
    ]  # fmt: skip


def calibration_error(bins: Sequence[Bin]) -> float:
    """The expected calibration error (Naeini et al. 2015): the mean difference of predicted and observed
    over the bins, weighted by their sequences."""
    total = sum(one.n for one in bins)
    return sum(one.n * abs(one.predicted - one.observed) for one in bins) / total


class Bootstrap:
    """Draws of whole groups with replacement: every statistic sees the same draws, so that differences
    of two are paired. ``draws`` is their number, ``seed`` what they come from."""

    def __init__(self, group_N: NDArray[np.int64], draws: int, seed: int):
        self.place_N = np.unique(group_N, return_inverse=True)[1]
        self.groups, self.draws, self.seed = int(self.place_N.max()) + 1, draws, seed

    def weights(self) -> Iterator[Floats]:
        """The weights of the sequences in some draws at a time, ``[B, N]``."""
        random = np.random.default_rng(self.seed)
        together = max(WEIGHTS // max(len(self.place_N), self.groups), 1)
        share = np.full(self.groups, 1 / self.groups)
        for start in range(0, self.draws, together):
            many = min(together, self.draws - start)
            drawn_BG = random.multinomial(self.groups, share, size=many)
            yield drawn_BG[:, self.place_N].astype(np.float64)

    def estimate(self, statistic: Callable[[NDArray[Any]], Floats]) -> Estimate:
        """The statistic with its percentile interval (Efron 1979)."""
        return self.estimates([statistic])[0]

    def estimates(self, statistics: Sequence[Callable[[NDArray[Any]], Floats]]) -> list[Estimate]:
        """Several statistics, each with its interval, over the same draws."""
        found: list[list[Floats]] = [[] for _ in statistics]
        for weight_BN in self.weights():
            for values, statistic in zip(found, statistics, strict=True):
                values.append(statistic(weight_BN))
        once = np.ones((1, len(self.place_N)))
        return [
            _estimate(float(statistic(once)[0]), np.concatenate(values))
            for values, statistic in zip(found, statistics, strict=True)
        ]


def _estimate(value: float, drawn: Floats) -> Estimate:
    drawn = drawn[np.isfinite(drawn)]
    if not len(drawn):
        return Estimate(value, math.nan, math.nan, math.nan)
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(value, float(low), float(high), float(drawn.std()))


def difference(
    one: Callable[[NDArray[Any]], Floats], other: Callable[[NDArray[Any]], Floats]
) -> Callable[[NDArray[Any]], Floats]:
    """One statistic minus another, under the same weights."""
    return lambda weight_BN: one(weight_BN) - other(weight_BN)


def mean_of(values: Sequence[float]) -> Estimate:
    """The mean of independent figures, with Student's interval; NaN ends with fewer than two."""
    from scipy.special import stdtrit

    n, mean = len(values), float(np.mean(values)) if values else math.nan
    if n < 2:
        return Estimate(mean, math.nan, math.nan, math.nan)
    error = float(np.std(values, ddof=1)) / math.sqrt(n)
    reach = float(stdtrit(n - 1, (1 + LEVEL) / 2)) * error
    return Estimate(mean, mean - reach, mean + reach, error)
