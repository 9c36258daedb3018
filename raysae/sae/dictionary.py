"""Metrics of the dictionary, the decoder's rows: their similarity to each other and to other rows.

- ``decoder_cosine_mean_square`` = mean over i != j of cos²(w_i, w_j), the decorrelation term. Its
  least value is (F - D) / (D (F - 1)) when F > D (Welch 1974);
  ``decoder_cosine_mean_square_excess`` is the difference from that.
- ``decoder_cosine_nearest_mean``, ``decoder_cosine_nearest_max`` = mean and maximum over rows of
  the largest cosine with another row.
- ``stability`` = mean cosine of the best one-to-one match between the live rows of two SAEs.
- ``mmcs`` = mean over true atoms of the largest absolute cosine with a decoder row; ``recovered`` =
  fraction of atoms for which it is above 0.9.

Shapes: D d_in, F d_sae, G true atoms.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import normalize

if TYPE_CHECKING:
    from raysae.sae.base import SAE

COSINES_AT_ONCE = 2**20
RECOVERED_ABOVE = 0.9


def mean_square_cosine(W_dec_FD: Tensor) -> Tensor:
    """The mean of (w_i · w_j)² over i != j, a scalar, exact, for decoder rows of unit norm.

    As ‖W Wᵀ‖² = ‖Wᵀ W‖² (Frobenius), the smaller Gram matrix is used: F·D·min(F, D) operations. The
    result for a single row is 0.
    """
    rows, width = W_dec_FD.shape
    if rows == 1:
        return W_dec_FD.new_zeros(())
    with torch.autocast(W_dec_FD.device.type, enabled=False):  # a small difference of large sums
        gram = W_dec_FD.T @ W_dec_FD if rows > width else W_dec_FD @ W_dec_FD.T
    with_themselves = W_dec_FD.square().sum(dim=1).square().sum()
    return (gram.square().sum() - with_themselves) / (rows * (rows - 1))


def least_mean_square_cosine(d_sae: int, d_in: int) -> float:
    """The least possible ``mean_square_cosine``: Welch's bound (Welch 1974)."""
    return max(d_sae - d_in, 0) / (d_in * (d_sae - 1)) if d_sae > 1 else 0.0


@torch.no_grad()
def decoder_statistics(W_dec_FD: Tensor) -> dict[str, float]:
    """The ``decoder_`` metrics of rows ``[d_sae, d_in]``, by name; see this module's docstring."""
    rows = len(W_dec_FD)
    squares, nearest_F = _cosines(normalize(W_dec_FD.float(), dim=1))
    correlation = squares / max(rows * (rows - 1), 1)
    return {
        "decoder_cosine_mean_square": correlation,
        "decoder_cosine_mean_square_excess": correlation
        - least_mean_square_cosine(*W_dec_FD.shape),
        "decoder_cosine_nearest_mean": float(nearest_F.double().mean()),
        "decoder_cosine_nearest_max": float(nearest_F.max()),
    }


def _cosines(rows_FD: Tensor) -> tuple[float, Tensor]:
    """The sum of the squared cosines of all pairs of rows, and each row's largest cosine with
    another.

    The rows must have unit norm. For a single row both are 0.
    """
    rows = len(rows_FD)
    count = min(max(COSINES_AT_ONCE // rows, 64), rows)
    # new buffers for each block can fragment memory: 268 MB instead of 8 MB at 8,192 rows
    cosines, squared = rows_FD.new_empty(2, count, rows)
    squares, nearest_F = 0.0, rows_FD.new_empty(rows)
    for start in range(0, rows, count):
        block = rows_FD[start : start + count]
        cosine = torch.mm(block, rows_FD.T, out=cosines[: len(block)])
        cosine.diagonal(start).zero_()
        squares += float(torch.square(cosine, out=squared[: len(block)]).sum(dtype=torch.float64))
        cosine.diagonal(start).fill_(-2 if rows > 1 else 0)
        torch.amax(cosine, dim=1, out=nearest_F[start : start + count])
    return squares, nearest_F


@torch.no_grad()
def mmcs(truth_GD: Tensor, W_dec_FD: Tensor) -> tuple[float, float]:
    """``mmcs``, ``recovered`` of decoder rows ``[d_sae, d_in]`` for atoms ``[atoms, d_in]``."""
    truth, learned = normalize(truth_GD.double(), dim=1), normalize(W_dec_FD.double(), dim=1)
    best_G = (truth @ learned.T).abs().amax(dim=1)
    return float(best_G.mean()), float((best_G > RECOVERED_ABOVE).double().mean())


@torch.no_grad()
def best_match(first_FD: Tensor, second_FD: Tensor) -> float:
    """The mean cosine of the best one-to-one match of two sets of rows ``[*, d_in]`` (Hungarian
    method).

    When the sets differ in size, every row of the smaller is matched. NaN when one is empty.
    """
    from scipy.optimize import linear_sum_assignment

    if not (len(first_FD) and len(second_FD)):
        return float("nan")
    first, second = normalize(first_FD.double(), dim=1), normalize(second_FD.double(), dim=1)
    cosine = (first @ second.T).cpu().numpy()
    matched = linear_sum_assignment(cosine, maximize=True)
    return float(cosine[matched].mean())


def stability(first: "SAE", second: "SAE", rows: Tensor | Iterable[Tensor]) -> float:
    """How similar the dictionaries of two SAEs are, such as of two seeds, from -1 to 1.

    It is ``best_match`` of the decoder rows of the latents that fire on ``rows`` (``[rows, d_in]``,
    or batches of them). NaN when one SAE has no live latent. The time grows with the cube of the
    number of live latents: seconds for 2,000, minutes for 10,000.
    """
    batches = [rows] if isinstance(rows, Tensor) else list(rows)
    live = [sae.W_dec[live_latents(sae, batches)] for sae in (first, second)]
    return best_match(*live)


@torch.no_grad()
def live_latents(sae: "SAE", batches: Iterable[Tensor]) -> Tensor:
    """Which latents fire on the batches ``[batch, d_in]``: ``[d_sae]`` of bool."""
    fired_F = torch.zeros(sae.config.d_sae, dtype=torch.bool, device=sae.W_dec.device)
    for batch_BD in batches:
        fired_F |= (sae.encode(batch_BD.to(sae.W_dec)) > 0).any(dim=0)
    return fired_F
