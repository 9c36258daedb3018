"""The knee of explained variance over d_sae and K.

The knee is the cheapest config beyond which the gain in explained variance per doubling of K, and per
doubling of d_sae, stays below a quarter of the largest such gain in that direction. If every d_sae was
tried with every K, the trials themselves are compared. Otherwise a smooth surface is fitted to them (a
thin-plate spline over log2 d_sae and log2 K) and used instead.
"""

import itertools
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FRACTION = 0.25
"""A gain below this fraction of the largest gain counts as small."""
STABLE_FRACTION = 0.05
"""An agreement of seeds within this fraction of the best counts as equal to it."""
LEAST_GAIN = 1e-6
"""Explained variance that rises by less than this per doubling counts as not rising."""
SURFACE_POINTS = 5
"""The least number of configs that a surface is fitted to."""


@dataclass(frozen=True)
class Knee:
    """The knee's d_sae and K, or None for both when there is no knee; and the reason."""

    d_sae: int | None
    k: int | None
    reason: str

    def distance(self, d_sae: int, k: int) -> float:
        """The distance of a config from the knee, in doublings of d_sae plus doublings of K."""
        assert self.d_sae is not None and self.k is not None
        return abs(math.log2(d_sae / self.d_sae)) + abs(math.log2(k / self.k))


def find_knee(points: list[tuple[int, int, float]]) -> Knee:
    """The knee among points ``(d_sae, k, explained_variance)``; equal configs are averaged.

    It is a definition of raysae's own, not that of a paper; see the top of this file.
    """
    d_values, k_values = sorted({d for d, _, _ in points}), sorted({k for _, k, _ in points})
    for name, values in (("d_sae", d_values), ("K", k_values)):
        if len(values) < 2:
            return Knee(None, None, f"only one {name} was tried")
    ev, kind = surface_of(points, d_values, k_values)
    if ev is None:
        return Knee(None, None, kind)
    gain_d = gains(ev, d_values, axis=0)
    gain_k = gains(ev, k_values, axis=1)
    if min(gain_d.max(), gain_k.max()) <= LEAST_GAIN:
        return Knee(None, None, f"explained variance does not rise with both d_sae and K ({kind})")
    for column, k in enumerate(k_values[:-1]):
        for row, d in enumerate(d_values[:-1]):
            settled_k = (gain_k[row, column:] < FRACTION * gain_k.max()).all()
            settled_d = (gain_d[row:, column] < FRACTION * gain_d.max()).all()
            if k <= d and settled_k and settled_d:
                return Knee(d, k, _why(gain_d, gain_k, kind))
    return Knee(
        None, None,
        "over the configs tried, explained variance keeps rising by more than a quarter of its "
        f"largest gain per doubling of d_sae or K ({kind})",
    )  # fmt: skip


def find_stable_knee(points: list[tuple[int, int, float, float]]) -> Knee:
    """The stable knee among ``(d_sae, k, explained_variance, stability)``.

    Its d_sae is the smallest one beyond which, for most values of K, the gain per doubling stays below
    a quarter of the largest gain. Its K is found at that d_sae: start from the K with the best agreement
    of seeds and go up as long as the agreement stays within a twentieth of the best.
    """
    d_values, k_values = sorted({d for d, *_ in points}), sorted({k for _, k, *_ in points})
    for name, values in (("d_sae", d_values), ("K", k_values)):
        if len(values) < 2:
            return Knee(None, None, f"only one {name} was tried")
    ev, kind = surface_of([(d, k, e) for d, k, e, _ in points], d_values, k_values)
    agreement, _ = surface_of([(d, k, a) for d, k, _, a in points], d_values, k_values)
    if ev is None or agreement is None:
        return Knee(None, None, kind)
    row = _settled(gains(ev, d_values, axis=0), d_values, k_values)
    if row is None:
        return Knee(
            None, None,
            "over the d_sae tried, explained variance keeps rising by more than a quarter of its "
            f"largest gain per doubling ({kind})",
        )  # fmt: skip
    possible = [column for column, k in enumerate(k_values) if k <= d_values[row]]
    best = max(possible, key=lambda column: agreement[row, column])
    floor = (1 - STABLE_FRACTION) * agreement[row, best]
    stable = list(
        itertools.takewhile(lambda column: agreement[row, column] >= floor, possible[best:])
    )
    if len(stable) == len(possible[best:]):
        return Knee(None, None, f"agreement of seeds does not fall over the K tried ({kind})")
    column = stable[-1]
    if column == 0:
        return Knee(None, None, f"agreement of seeds falls from the first K on ({kind})")
    return Knee(
        d_values[row], k_values[column],
        f"past it a doubling of d_sae gains less than a quarter of the largest gain at most K, and a "
        f"larger K takes the agreement of seeds from {agreement[row, column]:.3f} to "
        f"{agreement[row, column + 1]:.3f}, below {floor:.3f} ({kind})",
    )  # fmt: skip


def _settled(gain: NDArray[np.float64], d_values: list[int], k_values: list[int]) -> int | None:
    """The index of the smallest d_sae beyond which gains stay small for most values of K.

    ``gain`` is ``[d_sae - 1, K]``. None when there is no such d_sae.
    """
    places = []
    for column in range(len(k_values)):
        small = gain[:, column] < FRACTION * gain[:, column].max()
        settled = [row for row in range(len(small)) if small[row:].all()]
        if gain[:, column].max() > LEAST_GAIN:
            places.append(settled[0] if settled else len(d_values))
    places.sort()
    middle = places[len(places) // 2] if places else len(d_values)
    return middle if middle < len(d_values) - 1 else None


def surface_of(
    points: list[tuple[int, int, float]], d_values: list[int], k_values: list[int]
) -> tuple[NDArray[np.float64] | None, str]:
    """Explained variance ``[d_sae, K]`` for all values tried, and how it was found; None: why not."""
    tried: dict[tuple[int, int], list[float]] = {}
    for d, k, ev in points:
        tried.setdefault((d, k), []).append(ev)
    mean = {config: sum(values) / len(values) for config, values in tried.items()}
    if len(mean) == len(d_values) * len(k_values):
        return np.array(
            [[mean[d, k] for k in k_values] for d in d_values]
        ), "measured on a full grid"
    if len(mean) < SURFACE_POINTS:
        return (
            None,
            f"{len(mean)} configs are too few to fit a surface ({SURFACE_POINTS} are needed)",
        )
    return _fitted(mean, d_values, k_values)


def _fitted(
    mean: dict[tuple[int, int], float], d_values: list[int], k_values: list[int]
) -> tuple[NDArray[np.float64] | None, str]:
    from scipy.interpolate import RBFInterpolator

    where = np.log2(np.array(list(mean), dtype=np.float64))
    if np.linalg.matrix_rank(where - where[0]) < 2:
        return None, "the configs tried lie on one line, so no surface can be fitted"
    lattice = np.array([[math.log2(d), math.log2(k)] for d in d_values for k in k_values])
    spline = RBFInterpolator(where, np.array(list(mean.values())), smoothing=1e-3)
    surface = spline(lattice).reshape(len(d_values), len(k_values))
    return surface, f"on a surface fitted to {len(mean)} configs"


def gains(ev: NDArray[np.float64], values: list[int], axis: int) -> NDArray[np.float64]:
    doublings = np.diff(np.log2(np.array(values, dtype=np.float64)))
    shape = (-1, 1) if axis == 0 else (1, -1)
    return np.diff(ev, axis=axis) / doublings.reshape(shape)


def _why(gain_d: NDArray[np.float64], gain_k: NDArray[np.float64], kind: str) -> str:
    return (
        "past it a doubling of K gains less than a quarter of "
        f"{gain_k.max():.3f}, and a doubling of d_sae less than a quarter of {gain_d.max():.3f}, "
        f"the largest gains ({kind})"
    )
