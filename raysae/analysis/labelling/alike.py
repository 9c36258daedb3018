"""Features with nearly the same decoder direction: in the same SAE, and in those of other seeds.

Shapes: L features looked at, F d_sae, D d_in, K most alike.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raysae.sae import SAE

TOGETHER = 1024
"""Features that are compared with all others at a time."""


def directions(sae: SAE) -> Tensor:
    """The decoder's rows at norm 1, ``[F, D]`` on the CPU; those of norm 0 stay so."""
    rows_FD = sae.W_dec.detach().float().cpu()
    return rows_FD / rows_FD.norm(dim=1, keepdim=True).clamp_min(1e-30)


def most_alike(
    directions_FD: Tensor, features: NDArray[np.int64], live: NDArray[np.bool_], most: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """For each of ``features`` the other live ones of the largest cosine, and these, ``[L, K]``."""
    others = torch.from_numpy(np.flatnonzero(live))
    most = min(most, len(others) - 1)
    if most < 1 or not len(features):
        return np.empty((len(features), 0), np.int64), np.empty((len(features), 0), np.float32)
    numbers, cosines = [], []
    for some in torch.from_numpy(features).split(TOGETHER):
        cosine_LF = directions_FD[some] @ directions_FD[others].T
        cosine_LF.masked_fill_(some[:, None] == others, -2)
        best = cosine_LF.topk(most, dim=1)
        numbers.append(others[best.indices])
        cosines.append(best.values)
    return torch.cat(numbers).numpy(), torch.cat(cosines).numpy()


def agreement(directions_FD: Tensor, others: Sequence[SAE]) -> NDArray[np.float32] | None:
    """For each feature its largest cosine with a feature of another seed, meaned over the seeds, ``[F]``.

    None without another seed.
    """
    if not others:
        return None
    found = [_nearest(directions_FD, directions(other)) for other in others]
    return torch.stack(found).mean(0).numpy()


def chance(directions_FD: Tensor, seed: int) -> NDArray[np.float32]:
    """The control of ``agreement``: the same with random directions in place of another seed's."""
    drawn = torch.Generator().manual_seed(seed)
    random_FD = torch.randn(directions_FD.shape, generator=drawn)
    return _nearest(directions_FD, random_FD / random_FD.norm(dim=1, keepdim=True)).numpy()


def _nearest(one_FD: Tensor, other_FD: Tensor) -> Tensor:
    return torch.cat([(some @ other_FD.T).amax(1) for some in one_FD.split(TOGETHER)])
