"""Indicators of whether an SAE's size and K suit its rows, which need no truth.

- ``decoder_cosine_mean_abs`` = mean |cosine| of two live decoder rows: latents that mix several features
  are similar to each other. Of more than ``PAIRS_SAMPLE`` rows, a sample is compared.
- ``decoder_projection`` = mean over rows of the n-th largest projection of the centred row onto the
  decoder, in units of the rows' spread (arXiv 2508.16560, "Sparse but Wrong", s_n^dec): latents that mix
  features also point at rows in which they have no part. n is ``projection_rank(live latents)``.
- ``stability_chance`` = the ``stability`` of random dictionaries of the same shapes.

Shapes: B batch, D d_in, F live latents.
"""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize

from raysae.sae.dictionary import best_match

PAIRS_SAMPLE = 4096
PROJECTION_ROWS = 4096
PROJECTIONS = 2**24
CHANCE_ROWS = 1024
RANK_FRACTION = 4


class Halves(NamedTuple):
    """A mean over rows, and the difference of the means of its two halves, by every other row."""

    mean: float
    difference: float


def projection_rank(latents: int) -> int:
    """The n of ``decoder_projection`` for so many live latents: a quarter of them."""
    return max(latents // RANK_FRACTION, 1)


def projection_rows(latents: int) -> int:
    """The number of rows that ``decoder_projection`` looks at, for so many latents."""
    return min(PROJECTION_ROWS, max(PROJECTIONS // max(latents, 1), 256))


@torch.no_grad()
def mean_abs_cosine(rows_FD: Tensor) -> float:
    """``decoder_cosine_mean_abs`` of decoder rows ``[live, d_in]``; NaN for fewer than two."""
    if len(rows_FD) < 2:
        return float("nan")
    if len(rows_FD) > PAIRS_SAMPLE:
        drawn = torch.randperm(len(rows_FD), generator=torch.Generator().manual_seed(0))
        rows_FD = rows_FD[drawn[:PAIRS_SAMPLE].to(rows_FD.device)]
    unit_FD = normalize(rows_FD.float(), dim=1)
    count, total = len(unit_FD), 0.0
    for block_BD in unit_FD.split(1024):
        total += float((block_BD @ unit_FD.T).abs().sum(dtype=torch.float64))
    themselves = float(unit_FD.square().sum(dim=1).sum(dtype=torch.float64))
    return (total - themselves) / (count * (count - 1))


@torch.no_grad()
def nth_projection(rows_FD: Tensor, batches: Iterable[Tensor]) -> Halves:
    """``decoder_projection`` of decoder rows ``[live, d_in]`` and centred rows ``[batch, d_in]`` whose
    root mean square value is 1; NaN for no latent."""
    if not len(rows_FD):
        return Halves(float("nan"), float("nan"))
    unit_FD = normalize(rows_FD.float(), dim=1)
    below = len(unit_FD) - projection_rank(len(unit_FD)) + 1
    left, found = projection_rows(len(unit_FD)), []
    for batch_BD in batches:
        rows_BD = batch_BD[:left].float() / unit_FD.shape[1] ** 0.5
        found.append((rows_BD @ unit_FD.T).kthvalue(below, dim=1).values.double())
        left -= len(rows_BD)
        if left <= 0:
            break
    values = torch.cat(found)
    halves = [values[at::2].mean() for at in (0, 1)]
    return Halves(float(values.mean()), float((halves[0] - halves[1]).abs()))


@torch.no_grad()
def chance_agreement(first: int, second: int, d_in: int) -> float:
    """``stability_chance`` for two seeds with so many live latents of ``d_in`` dimensions.

    Of the smaller set at most ``CHANCE_ROWS`` are matched, which errs high by less than 0.01.
    """
    fewer, more = sorted((first, second))
    draw = torch.Generator().manual_seed(0)
    small, large = (
        torch.randn(count, d_in, generator=draw) for count in (min(fewer, CHANCE_ROWS), more)
    )
    return best_match(small, large)
