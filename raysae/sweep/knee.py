"""The knee of explained variance over d_sae and K.

The cheapest config past which the explained variance gained per doubling of K, and per doubling of
d_sae, stays under a quarter of the largest such gain seen in that direction. Where every d_sae was
tried with every K the trials themselves are compared; where they are scattered, a smooth surface
through them (a thin-plate spline over log2 d_sae and log2 K) stands in.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

SHARE = 0.25
"""A gain below this share of the largest one no longer counts."""
LEAST_GAIN = 1e-6
"""Explained variance that rises by less a doubling does not rise."""
SURFACE_POINTS = 5
"""Configs that a surface needs at least."""


@dataclass(frozen=True)
class Knee:
    """Where the knee lies, or no place, and why."""

    d_sae: int | None
    k: int | None
    reason: str

    def distance(self, d_sae: int, k: int) -> float:
        """How far a config lies from the knee, in doublings."""
        assert self.d_sae is not None and self.k is not None
        return abs(math.log2(d_sae / self.d_sae)) + abs(math.log2(k / self.k))


def find_knee(points: list[tuple[int, int, float]]) -> Knee:
    """The knee among ``(d_sae, k, explained_variance)``; equal configs are averaged."""
    d_values, k_values = sorted({d for d, _, _ in points}), sorted({k for _, k, _ in points})
    for name, values in (("d_sae", d_values), ("K", k_values)):
        if len(values) < 2:
            return Knee(None, None, f"only one {name} was tried")
    ev, kind = _surface(points, d_values, k_values)
    if ev is None:
        return Knee(None, None, kind)
    gain_d = _gains(ev, d_values, axis=0)
    gain_k = _gains(ev, k_values, axis=1)
    if min(gain_d.max(), gain_k.max()) <= LEAST_GAIN:
        return Knee(None, None, f"explained variance does not rise with both d_sae and K ({kind})")
    for column, k in enumerate(k_values[:-1]):
        for row, d in enumerate(d_values[:-1]):
            settled_k = (gain_k[row, column:] < SHARE * gain_k.max()).all()
            settled_d = (gain_d[row:, column] < SHARE * gain_d.max()).all()
            if k <= d and settled_k and settled_d:
                return Knee(d, k, _why(gain_d, gain_k, kind))
    return Knee(
        None, None,
        "over the configs tried, explained variance keeps rising by more than a quarter of its "
        f"largest gain per doubling of d_sae or K ({kind})",
    )  # fmt: skip


def _surface(
    points: list[tuple[int, int, float]], d_values: list[int], k_values: list[int]
) -> tuple[NDArray[np.float64] | None, str]:
    """Explained variance ``[d_sae, K]`` over the lattice of values tried, and how it was had."""
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


def _gains(ev: NDArray[np.float64], values: list[int], axis: int) -> NDArray[np.float64]:
    doublings = np.diff(np.log2(np.array(values, dtype=np.float64)))
    shape = (-1, 1) if axis == 0 else (1, -1)
    return np.diff(ev, axis=axis) / doublings.reshape(shape)


def _why(gain_d: NDArray[np.float64], gain_k: NDArray[np.float64], kind: str) -> str:
    return (
        "past it a doubling of K gains less than a quarter of "
        f"{gain_k.max():.3f}, and a doubling of d_sae less than a quarter of {gain_d.max():.3f}, "
        f"the largest gains ({kind})"
    )
