"""How many directions the rows of a site spread over.

Shapes: B batch, D d_in.
"""

import torch
from torch import Tensor


@torch.no_grad()
def participation_ratio(x_BD: Tensor) -> float:
    """(sum of eigenvalues)² / sum of squared eigenvalues of the covariance of ``x [rows, d_in]``: from 1,
    all variance in one direction, to d_in, the same in all. NaN for rows that are all equal."""
    centred_BD = x_BD.double() - x_BD.double().mean(dim=0)
    covariance_DD = centred_BD.T @ centred_BD
    total = float(covariance_DD.trace())
    return total**2 / float(covariance_DD.square().sum()) if total > 0 else float("nan")
