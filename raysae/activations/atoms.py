"""Directions for synthetic worlds: random ones, and such as are nearly orthogonal.

Shapes: G atoms, D d_in.
"""

import numpy as np
from numpy.typing import NDArray

Directions = NDArray[np.float64]
PROJECTIONS = 50
CONVERGED = 1e-9


def unit_rows(random: np.random.Generator, count: int, d_in: int) -> Directions:
    """Random directions ``[count, d_in]`` of norm 1."""
    return _of_norm_1(random.standard_normal((count, d_in)))


def near_orthogonal(atoms_GD: Directions) -> Directions:
    """The atoms ``[atoms, d_in]`` made orthogonal; where there are more than dimensions, so that the
    mean squared cosine of two is as small as it can be (Welch's bound).

    By alternating projection onto tight frames and unit norms (Tropp et al. 2005).
    """
    if len(atoms_GD) <= atoms_GD.shape[1]:
        return _polar(atoms_GD.T).T
    for _ in range(PROJECTIONS):
        before_GD, atoms_GD = atoms_GD, _of_norm_1(_polar(atoms_GD))
        if np.abs(atoms_GD - before_GD).max() < CONVERGED:
            break
    return atoms_GD


def _polar(rows: Directions) -> Directions:
    """The nearest matrix with orthonormal columns, of one with at least as many rows as columns."""
    values, vectors = np.linalg.eigh(rows.T @ rows)
    whitened: Directions = rows @ (vectors / np.sqrt(np.maximum(values, 1e-12))) @ vectors.T
    return whitened


def _of_norm_1(rows: Directions) -> Directions:
    normed: Directions = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return normed
