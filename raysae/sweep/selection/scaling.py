"""The law of scaling L(n, k) of Gao et al. 2024 (arXiv 2406.04093, section 3.2), fitted to the trials.

With n = d_sae, k the active latents and L the unexplained variance (FVU, the normalised MSE):

    L(n, k) = exp(alpha + beta_k log k + beta_n log n + gamma log k log n) + exp(zeta + eta log k)

It is fitted by least squares on log L from several starts. Before anything is foretold, the law is
fitted without the trials of the largest d_sae, and must foretell those within ``MOST_ERROR``; else it is
refused, in words. Intervals are those of ``DRAWS`` fits to trials drawn with replacement, each with a
residual drawn from its own; and as no draw knows how far the law itself is off, they are wider by the
error with which it foretold the largest d_sae. A law that is off there to one side is off by as much
again at twice that d_sae (``scripts/scaling_check.py``), so that counts, too.

Shapes: T trials, P parameters.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raysae.records.rows import TrialRow

Floats = NDArray[np.float64]
PARAMETERS = ("alpha", "beta_k", "beta_n", "gamma", "zeta", "eta")
SPARE = 4
"""Trials that a fit needs beyond its parameters, to have something left to be checked by."""
LEAST_SIZES, LEAST_KS = 3, 2
"""The least numbers of d_sae and of K."""
MOST_ERROR = 0.10
"""The mean relative error of the FVU of the held-back trials, beyond which the law is refused."""
DRAWS = 60
INTERVAL = (0.05, 0.95)
GRID = 24
"""Points of a curve in the page."""
LARGER = (2, 4)
"""How many times the largest d_sae the law is asked about."""
STARTS = tuple(product((-0.3, -0.8), (-0.2, -0.7), (0.05, 0.3)))
"""Where fits begin: slopes along log n and log k, and the share of the smallest FVU that is the floor."""
SLOPES = 4.0
"""The largest slope that a fit may have: no dictionary doubled in size divides its error by more than
2^4."""


@dataclass(frozen=True)
class Points:
    """The trials that a law is fitted to."""

    n_T: Floats
    """d_sae"""
    k_T: Floats
    fvu_T: Floats

    def __len__(self) -> int:
        return len(self.n_T)

    def at(self, chosen: Any) -> "Points":
        """Some of them, by a mask or by their numbers."""
        return Points(self.n_T[chosen], self.k_T[chosen], self.fvu_T[chosen])


@dataclass(frozen=True)
class Law:
    """The law with its parameters ``[6]``, in the order of ``PARAMETERS``, for n and k as they are."""

    p_P: Floats

    def fvu(self, n: Any, k: Any) -> Floats:
        """The FVU at d_sae ``n`` and ``k``, numbers or arrays."""
        return np.exp(_log_law(self.p_P, np.log(n), np.log(k))[0])


def points_of(trials: Sequence[TrialRow]) -> Points:
    """The finished trials that have a K and an FVU above 0."""
    usable = [
        (row.d_sae, row.k, 1 - row.explained_variance)
        for row in trials
        if row.done and row.k is not None and 0 < 1 - row.explained_variance < math.inf
    ]
    return Points(*np.array(usable, dtype=np.float64).reshape(-1, 3).T)


def fit_law(points: Points, start: Law | None = None) -> Law:
    """The law that fits best; from the parameters of ``start``, or from ``STARTS``."""
    from scipy.optimize import least_squares

    log_n_T, log_k_T, log_fvu_T = (np.log(one) for one in (points.n_T, points.k_T, points.fvu_T))

    def residuals(p_P: Floats) -> Floats:
        return _log_law(p_P, log_n_T, log_k_T)[0] - log_fvu_T

    def slopes(p_P: Floats) -> Floats:
        return _log_law(p_P, log_n_T, log_k_T)[1]

    low = np.array([-60, -SLOPES, -SLOPES, -1, -60, -SLOPES])
    starts = [start.p_P] if start is not None else _starts(points)
    fits = [
        least_squares(residuals, one.clip(low, -low), jac=slopes, bounds=(low, -low), max_nfev=200)
        for one in starts
    ]
    return Law(min(fits, key=lambda fit: fit.cost).x)


def _log_law(p_P: Floats, log_n: Any, log_k: Any) -> tuple[Floats, Floats]:
    """log L, and its derivatives by the parameters ``[T, 6]``."""
    alpha, beta_k, beta_n, gamma, zeta, eta = p_P
    falling = alpha + beta_k * log_k + beta_n * log_n + gamma * log_k * log_n
    floor = zeta + eta * log_k
    log_l = np.logaddexp(falling, floor)
    share, one = np.exp(falling - log_l), np.ones_like(log_l)
    rest = np.exp(floor - log_l)
    columns = [one, log_k * one, log_n * one, log_k * log_n * one]
    return log_l, np.stack([*(share * c for c in columns), rest, rest * log_k], axis=-1)


def _starts(points: Points) -> list[Floats]:
    """Parameters to begin with, all of which go through the middle of the trials."""
    log_n, log_k = np.log(points.n_T).mean(), np.log(points.k_T).mean()
    middle, smallest = np.log(points.fvu_T).mean(), math.log(points.fvu_T.min())
    return [
        np.array([
            middle - by_n * log_n - by_k * log_k, by_k, by_n, 0.0, smallest + math.log(share), by_k / 2
        ])
        for by_n, by_k, share in STARTS
    ]  # fmt: skip


def refusal(points: Points) -> str | None:
    """Why no law can be fitted and checked, in words; None where it can."""
    sizes, ks, needed = len(set(points.n_T)), len(set(points.k_T)), len(PARAMETERS) + SPARE
    if not len(points):
        return "no finished trial has a K and a variance left unexplained"
    if sizes < 2:
        return f"all {len(points)} trials have one d_sae, {points.n_T[0]:g}: nothing says how it scales"
    if ks < LEAST_KS:
        return f"all {len(points)} trials have one K, {points.k_T[0]:g}: the law needs {LEAST_KS}"
    if len(points) < needed:
        return (
            f"{len(points)} trials are too few for a law of {len(PARAMETERS)} parameters: it needs "
            f"{needed}"
        )
    if sizes < LEAST_SIZES:
        return (
            f"the trials have {sizes} values of d_sae; the law needs {LEAST_SIZES}, as the largest is "
            "held back to check it"
        )
    kept = points.at(points.n_T < points.n_T.max())
    if len(kept) < len(PARAMETERS) or len(set(kept.k_T)) < LEAST_KS:
        return (
            f"without the {len(points) - len(kept)} trials of d_sae {points.n_T.max():g}, which are held "
            f"back to check it, {len(kept)} trials are left, too few for a law of {len(PARAMETERS)} "
            "parameters"
        )
    return None


@dataclass(frozen=True)
class Check:
    """How well a law fitted without the largest d_sae foretells the trials there."""

    d_sae: int
    k: list[int]
    found: list[float]
    foretold: list[float]

    @property
    def error(self) -> float:
        """The mean relative error of the FVU."""
        pairs = zip(self.found, self.foretold, strict=True)
        return float(np.mean([abs(told / there - 1) for there, told in pairs]))

    @property
    def bias(self) -> float:
        """The mean relative error with its sign: above 0 where more was foretold than was found."""
        pairs = zip(self.found, self.foretold, strict=True)
        return float(np.mean([told / there - 1 for there, told in pairs]))

    @property
    def refusal(self) -> str | None:
        """Why nothing may be foretold by such a law, in words; None where it may."""
        most, beyond = f"at most {MOST_ERROR:.0%} is asked", self.error + abs(self.bias)
        off = f"a law fitted without d_sae {self.d_sae} is {self.error:.0%} off there on average"
        if not self.error <= MOST_ERROR:
            return f"{off} ({most}): these trials do not follow it"
        if beyond > MOST_ERROR:
            return (
                f"{off}, by {self.bias:+.0%} with the sign, so that it would be about {beyond:.0%} off "
                f"at twice that ({most}): it misses how these trials bend"
            )
        return None

    def record(self) -> dict[str, Any]:
        """As ``scaling.json`` has it."""
        return {
            "d_sae": self.d_sae, "k": self.k, "fvu": self.found, "foretold": self.foretold,
            "error": self.error, "bias": self.bias, "most": MOST_ERROR,
        }  # fmt: skip


def check(points: Points) -> Check:
    """Fit the law without the largest d_sae, and compare the trials there with it."""
    largest = points.n_T.max()
    back = points.at(points.n_T == largest)
    law = fit_law(points.at(points.n_T < largest))
    order = np.argsort(back.k_T, kind="stable")
    told = law.fvu(back.n_T, back.k_T)[order]
    ks, found = [int(k) for k in back.k_T[order]], [float(one) for one in back.fvu_T[order]]
    return Check(int(largest), ks, found, [float(one) for one in told])


def bootstrapped(points: Points, law: Law, seed: int = 0) -> list[tuple[Law, float]]:
    """Laws fitted to trials drawn with replacement, each with one of its residuals of log FVU.

    A draw without two K and two d_sae says nothing and is left out.
    """
    random, laws = np.random.default_rng(seed), []
    for _ in range(DRAWS):
        drawn = points.at(random.integers(len(points), size=len(points)))
        residual_at = int(random.integers(len(points)))
        if min(len(set(drawn.n_T)), len(set(drawn.k_T))) < 2:
            continue
        one = fit_law(drawn, law)
        off = np.log(points.fvu_T / one.fvu(points.n_T, points.k_T))
        laws.append((one, float(off[residual_at])))
    return laws


def interval(
    laws: Sequence[tuple[Law, float]], n: float, k: float, error: float = 0.0
) -> list[float]:
    """The interval of the FVU at ``n`` and ``k``, low and high, of a law that is off by ``error``."""
    told = [float(law.fvu(n, k)) * math.exp(off) for law, off in laws]
    low, high = np.quantile(told, INTERVAL)
    return [float(low / (1 + error)), float(high * (1 + error))]


def scaling_of(trials: Sequence[TrialRow]) -> dict[str, Any]:
    """The content of ``scaling.json`` but for costs: the law, how it was checked, what it foretells.

    ``refused`` says in words why nothing is foretold, and is None otherwise.
    """
    points = points_of(trials)
    found: dict[str, Any] = {"trials": len(points), "refused": refusal(points), "predictions": []}
    if len(set(points.n_T)) > 1:
        found["points"] = [
            {"d_sae": int(n), "k": int(k), "fvu": float(fvu)}
            for n, k, fvu in zip(points.n_T, points.k_T, points.fvu_T, strict=True)
        ]
    if found["refused"] is not None:
        return found
    checked = check(points)
    found["check"] = checked.record()
    found["refused"] = checked.refusal
    if found["refused"] is not None:
        return found
    law, largest = fit_law(points), int(points.n_T.max())
    laws = bootstrapped(points, law)
    found["law"] = _law_record(law, laws)
    found["curves"] = _curves(points, law, laws, checked.error)
    found["predictions"] = [
        {
            "d_sae": times * largest, "k": int(k), "fvu": float(law.fvu(times * largest, k)),
            "interval": interval(laws, times * largest, k, checked.error),
        }
        for times, k in product(LARGER, sorted(set(points.k_T)))
    ]  # fmt: skip
    return found


def _curves(
    points: Points, law: Law, laws: Sequence[tuple[Law, float]], error: float
) -> list[dict[str, Any]]:
    """The law for each K, with its interval, from the smallest d_sae to the largest it is asked about."""
    last = points.n_T.max() * max(LARGER)
    n_G = np.geomspace(points.n_T.min(), last, GRID)
    curves = []
    for k in sorted(set(points.k_T)):
        drawn_LG = np.array([one.fvu(n_G, k) for one, _ in laws])
        low_G, high_G = np.quantile(drawn_LG, INTERVAL, axis=0)
        edges = {"low": low_G / (1 + error), "high": high_G * (1 + error)}
        values = {"d_sae": n_G, "fvu": law.fvu(n_G, k), **edges}
        curves.append({"k": int(k), **{name: one.tolist() for name, one in values.items()}})
    return curves


def _law_record(law: Law, laws: Sequence[tuple[Law, float]]) -> dict[str, Any]:
    """The parameters, each with its interval."""
    drawn_DP = np.array([one.p_P for one, _ in laws])
    edges = np.quantile(drawn_DP, INTERVAL, axis=0).T.tolist()
    return {
        "parameters": dict(zip(PARAMETERS, law.p_P.tolist(), strict=True)),
        "intervals": dict(zip(PARAMETERS, edges, strict=True)),
        "draws": len(drawn_DP),
    }
