"""Which rows a store keeps: those that are finite and, on request, not far larger than the others.

Shapes: N rows, D d_in.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raysae.errors import UserError
from raysae.sites import Site
from raysae.training.health import norms, too_large

if TYPE_CHECKING:
    from raysae.activations.writer import SiteRows

NonFinite = Literal["refuse", "drop"]
"""What to do with rows that hold NaN or infinite values."""


@dataclass(frozen=True)
class Kept:
    """Which rows of a shard a store keeps, and how many it leaves out."""

    which_N: NDArray[np.bool_] | None
    """Whether each row is kept ``[N]``; None when all are."""
    dropped: int = 0
    """Rows left out because they held NaN or infinite values."""
    too_large: int = 0
    """Rows left out because their norm was too large."""


def kept_rows(
    rows: "SiteRows", site: Site, non_finite: NonFinite, max_norm_ratio: float | None
) -> Kept:
    """Which rows of a shard are kept: the finite ones, and of these, with ``max_norm_ratio``, those
    whose norm is at most so many times the median norm of them all.

    It depends on the shard's rows alone. Raises UserError when rows are not finite and ``non_finite``
    is "refuse", and when ``max_norm_ratio`` is given and no row of a shard is finite.
    """
    finite_N = _finite(rows, site, non_finite)
    dropped = 0 if finite_N is None else int((~finite_N).sum())
    if max_norm_ratio is None:
        return Kept(finite_N, dropped)
    if len(rows) and dropped == len(rows):
        raise UserError(
            f"{site}: nothing is left of a shard's {len(rows):,} rows, as all hold NaN or infinite "
            "values; find out why"
        )
    norm_N = norms(rows.activation_ND)
    kept_N = np.ones(len(rows), dtype=bool) if finite_N is None else finite_N.copy()
    kept_N[kept_N] = ~too_large(norm_N[torch.from_numpy(kept_N)], max_norm_ratio).numpy()
    large = len(rows) - dropped - int(kept_N.sum())
    return Kept(kept_N if large else finite_N, dropped, large)


def largest(rows_ND: Tensor) -> float:
    """The largest absolute value; NaN when a value is NaN."""
    if not rows_ND.numel():
        return 0.0
    least, most = rows_ND.aminmax()
    return max(-float(least), float(most))


def _finite(rows: "SiteRows", site: Site, non_finite: NonFinite) -> NDArray[np.bool_] | None:
    """Which rows are finite ``[N]``; None when all are.

    Raises UserError when others exist and ``non_finite`` is "refuse".
    """
    if math.isfinite(largest(rows.activation_ND)):
        return None
    finite_N = rows.activation_ND.isfinite().all(dim=1).numpy()
    if non_finite == "drop":
        return finite_N
    first = int(np.flatnonzero(~finite_N)[0])
    raise UserError(
        f"{site}: {(~finite_N).sum()} of {len(finite_N)} rows hold NaN or infinite values (first: "
        f"sequence {rows.sequence[first]}, token {rows.token_index[first]}); find out why, or leave "
        "such rows out (source.non_finite=drop; --non-finite drop on import)"
    )
