"""Rows in the dtype of a store: what is refused since it does not fit there.

Shapes: N rows, D d_in, P probes.
"""

import math
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raysae.activations.kept import largest
from raysae.activations.schema import torch_dtype
from raysae.errors import UserError
from raysae.sites import Site

LOSS = 0.01
"""What a row may lose of its norm in the store's dtype."""
LOSSY_FRACTION, LOSSY_ROWS = 0.01, 10
PROBES = 16
"""Values of a row that are looked at first."""
PROBED_ROWS = 512
"""Suspect rows that are looked at at a time."""


def to_storage(activation_ND: Tensor, dtype: str, site: Site) -> Tensor:
    """The rows ``[N, D]`` in the store's dtype.

    Raises UserError when a finite value is too large, or when rows in bulk are too small: when more
    than 1 row in 100 (and at least 10 rows, or half of them) loses more than 1% of its norm. A row's
    error counts, not a value's: small values beside large ones may become 0, as they matter as little
    to an SAE's squared error.
    """
    reached = largest(activation_ND)
    limit = torch.finfo(torch_dtype(dtype)).max
    if limit < reached < math.inf:  # infinite values are handled elsewhere
        raise UserError(
            f"{site}: an activation reaches {reached:.4g}, above {dtype}'s largest value "
            f"{limit:.4g}; set dtype to bfloat16 or float32 (source.dtype=bfloat16)"
        )
    lossy = lossy_rows(activation_ND, dtype)
    refuse_lossy(str(site), lossy, len(activation_ND), dtype, lambda at: activation_ND[at])
    return activation_ND.to(torch_dtype(dtype))


def lossy_rows(rows_ND: Tensor, dtype: str) -> NDArray[np.int64]:
    """The numbers of the rows that lose more than 1% of their norm in ``dtype`` because their values
    are small. Rows of zeros lose nothing, and nor does rounding count: it is 0.4% in bfloat16.

    Costs little: a row with one value of ordinary size among ``PROBES`` is not looked at further.
    """
    smallest = _smallest(torch_dtype(dtype))
    if _smallest(rows_ND.dtype) >= smallest or not rows_ND.numel():
        return np.zeros(0, np.int64)
    found = []
    for at in _suspects(rows_ND, smallest).nonzero()[:, 0].split(PROBED_ROWS):
        exact_ND = rows_ND[at].double()
        lost_ND = exact_ND - exact_ND.to(torch_dtype(dtype)).double()
        peak_N1 = exact_ND.abs().amax(dim=1, keepdim=True).clamp_min(1e-320)  # else squares are 0
        found.append(at[(lost_ND / peak_N1).norm(dim=1) > LOSS * (exact_ND / peak_N1).norm(dim=1)])
    return torch.cat(found).cpu().numpy() if found else np.zeros(0, np.int64)


def must_look(rows_ND: Tensor, dtype: str) -> Tensor:
    """Whether ``to_storage`` may refuse the rows, as a scalar on their device: the host need not wait."""
    if not rows_ND.numel():
        return torch.zeros((), dtype=torch.bool, device=rows_ND.device)
    least, most = rows_ND.aminmax()
    reached = torch.maximum(-least.double(), most.double())
    found = (reached > torch.finfo(torch_dtype(dtype)).max) & reached.isfinite()
    smallest = _smallest(torch_dtype(dtype))
    if _smallest(rows_ND.dtype) < smallest:
        found |= _suspects(rows_ND, smallest).any()
    return found


def _suspects(rows_ND: Tensor, smallest: float) -> Tensor:
    """Which rows may lose much, as no value among their probes is of ordinary size, ``[N]``."""
    width = rows_ND.shape[1]
    safe = smallest * math.sqrt(width) / LOSS  # twice what the error of all values can explain
    probes_NP = rows_ND[:, :: max(width // PROBES, 1)]
    return probes_NP.abs().amax(dim=1) < safe


def refuse_lossy(
    where: str,
    lossy: NDArray[np.int64],
    rows: int,
    dtype: str,
    take: Callable[[NDArray[np.int64]], Tensor],
) -> None:
    """Raise UserError when the ``lossy`` rows, as ``lossy_rows`` gives them, are too many of ``rows``.

    ``take`` gives the activations of some rows. ``where`` is the site or file for the message.
    """
    if len(lossy) <= LOSSY_FRACTION * rows or len(lossy) < min(LOSSY_ROWS, rows / 2):
        return
    first_D = take(lossy[:1])[0].double()
    left = float(first_D.to(torch_dtype(dtype)).double().norm())
    holds = [d for d in ("bfloat16", "float32") if not len(lossy_rows(take(lossy[:100]), d))]
    mend = (
        f"set dtype to {holds[0]} (source.dtype={holds[0]}; --dtype {holds[0]} on import)"
        if holds
        else "no dtype of a store holds them: multiply the activations by a constant"
    )
    raise UserError(
        f"{where}: {len(lossy):,} of {rows:,} rows lose more than {LOSS:.0%} of their norm, as their "
        f"values are too small for {dtype}, whose smallest is {_smallest(torch_dtype(dtype)):.2g} "
        f"(row {lossy[0]}: {left:.3g} is left of norm {float(first_D.norm()):.3g}); {mend}"
    )


def _smallest(dtype: torch.dtype) -> float:
    """The smallest positive value."""
    return torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
