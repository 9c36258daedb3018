"""Metrics of the dictionary, the decoder's rows: their similarity to each other and to other rows.

- ``decoder_cosine_mean_square`` = mean over i != j of cos²(w_i, w_j), the decorrelation term. Its
  least value is (F - D) / (D (F - 1)) when F > D (Welch 1974);
  ``decoder_cosine_mean_square_excess`` is the difference from that.
- ``decoder_cosine_nearest_mean``, ``decoder_cosine_nearest_max`` = mean and maximum over rows of
  the largest cosine with another row. Of more than ``ALL_PAIRS`` rows, ``NEAREST_SAMPLE`` are looked
  at, each compared with all the others; ``decoder_cosine_nearest_latents`` then is their number.
- ``stability`` = mean cosine of the best one-to-one match between the live rows of two SAEs. Of more
  than ``ALL_MATCHED`` rows, ``MATCH_SAMPLE`` are matched; ``stability_latents`` then is their number.
- ``mmcs`` = mean over true atoms of the largest absolute cosine with a decoder row; ``recovered`` =
  fraction of atoms for which it is above 0.9.

Shapes: D d_in, F d_sae, G true atoms.
"""

import itertools
from collections.abc import Iterable, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from raysae.sae.base import SAE

COSINES_AT_ONCE = 2**20
ROWS_AT_ONCE = 4096
TRUE_COSINES_AT_ONCE = 2**22
RECOVERED_ABOVE = 0.9
ALL_PAIRS = 8192
"""Up to so many rows all pairs are compared, which costs rows² d_in. Beyond, time grows with rows
alone: it stays below a tenth of 1,000 training steps (``scripts/bench_after_training.py``)."""
NEAREST_SAMPLE = 4096
"""Of more rows than ``ALL_PAIRS``, the number whose nearest other row is looked for."""
ALL_MATCHED = 4096
"""Up to so many rows all are matched, in seconds; the time grows with their cube."""
MATCH_SAMPLE = 1024
"""Where one side has more rows than ``ALL_MATCHED``, the rows of the smaller one that are matched."""


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
    rows_FD = normalize(W_dec_FD.float(), dim=1)
    correlation, nearest, sampled = _similarities(rows_FD)
    return {
        "decoder_cosine_mean_square": correlation,
        "decoder_cosine_mean_square_excess": correlation
        - least_mean_square_cosine(*W_dec_FD.shape),
        "decoder_cosine_nearest_mean": float(nearest.double().mean()),
        "decoder_cosine_nearest_max": float(nearest.max()),
        **({"decoder_cosine_nearest_latents": float(len(nearest))} if sampled else {}),
    }


def _similarities(rows_FD: Tensor) -> tuple[float, Tensor, bool]:
    """The mean squared cosine of two rows, largest cosines with another row, and whether those are of
    a sample of the rows."""
    rows, width = rows_FD.shape
    if rows <= max(ALL_PAIRS, width):
        squares, nearest_F = _cosines(rows_FD)
        return squares / max(rows * (rows - 1), 1), nearest_F, False
    return _mean_square_by_gram(rows_FD), _nearest(rows_FD, _sample(rows, NEAREST_SAMPLE)), True


def _mean_square_by_gram(rows_FD: Tensor) -> float:
    """``mean_square_cosine`` of more rows than dimensions, summed in float64 over blocks of rows."""
    rows, width = rows_FD.shape
    gram_DD = rows_FD.new_zeros(width, width, dtype=torch.float64)
    themselves = 0.0
    for block_BD in rows_FD.split(ROWS_AT_ONCE):
        gram_DD += block_BD.T @ block_BD
        themselves += float(block_BD.double().square().sum(dim=1).square().sum())
    return (float(gram_DD.square().sum()) - themselves) / (rows * (rows - 1))


def _nearest(rows_FD: Tensor, chosen_S: Tensor) -> Tensor:
    """The largest cosine with another row of each of the rows ``chosen_S``: ``[chosen]``."""
    chosen_S = chosen_S.to(rows_FD.device)
    chosen_SD, places_S = rows_FD[chosen_S], torch.arange(len(chosen_S), device=rows_FD.device)
    nearest_S = rows_FD.new_full((len(chosen_S),), -1.0)
    for start in range(0, len(rows_FD), ROWS_AT_ONCE):
        block_BD = rows_FD[start : start + ROWS_AT_ONCE]
        cosine_SB = chosen_SD @ block_BD.T
        own_S = chosen_S - start
        inside_S = (own_S >= 0) & (own_S < len(block_BD))
        cosine_SB[places_S[inside_S], own_S[inside_S]] = -2  # not its own nearest
        nearest_S = torch.maximum(nearest_S, cosine_SB.amax(dim=1))
    return nearest_S


def _sample(rows: int, count: int) -> Tensor:
    """``count`` of the numbers below ``rows``, always the same ones, in order."""
    drawn = torch.randperm(rows, generator=torch.Generator().manual_seed(0))
    return drawn[:count].sort().values


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
    at_once = max(TRUE_COSINES_AT_ONCE // len(learned), 64)
    best_G = torch.cat([(part @ learned.T).abs_().amax(dim=1) for part in truth.split(at_once)])
    return float(best_G.mean()), float((best_G > RECOVERED_ABOVE).double().mean())


@torch.no_grad()
def best_match(first_FD: Tensor, second_FD: Tensor) -> float:
    """The mean cosine of the best one-to-one match of two sets of rows ``[*, d_in]`` (Hungarian
    method).

    When the sets differ in size, every row of the smaller is matched; of large sets, a sample of them
    (see ``matches``). As the others then compete for no row, the result errs high, by 0.004 where the
    two have nothing in common, and by less than the sample's own error where half is shared. NaN when
    one is empty.
    """
    if not (len(first_FD) and len(second_FD)):
        return float("nan")
    return float(_matched(first_FD, second_FD).mean(dtype="float64"))


def _matched(first_FD: Tensor, second_FD: Tensor) -> "NDArray[np.floating[Any]]":
    """The cosines of the pairs of that match."""
    from scipy.optimize import linear_sum_assignment

    dtype, count = torch.float64, matches(len(first_FD), len(second_FD))
    if count < min(len(first_FD), len(second_FD)):
        first_FD, second_FD = sorted((first_FD, second_FD), key=len)
        chosen_S = _sample(len(first_FD), count).to(first_FD.device)
        dtype, first_FD = torch.float32, first_FD[chosen_S]
    first, second = normalize(first_FD.to(dtype), dim=1), normalize(second_FD.to(dtype), dim=1)
    cosine = (first @ second.T).cpu().numpy()
    matched: NDArray[np.floating[Any]] = cosine[linear_sum_assignment(cosine, maximize=True)]
    return matched


def matches(first: int, second: int) -> int:
    """The number of rows that ``best_match`` matches, of sets of ``first`` and ``second`` rows."""
    fewer, more = sorted((first, second))
    return fewer if more <= ALL_MATCHED else min(fewer, MATCH_SAMPLE)


def match_bytes(rows: int, d_in: int) -> int:
    """Bytes that ``best_match`` takes at most for two sets of ``rows`` rows."""
    if rows > ALL_MATCHED:  # both normalized in float32, and a sample's cosines
        return 4 * (3 * rows * d_in + MATCH_SAMPLE * (d_in + 3 * rows))
    return 8 * (3 * rows * d_in + 2 * rows**2)


def agreement(decoders: Iterable[Sequence[Tensor]]) -> dict[str, float]:
    """``stability``: the mean of ``best_match`` over all pairs within each group of decoder rows
    ``[live, d_in]``, such as those of the seeds at one site; empty without a pair.

    ``stability_halves`` is the difference between two halves of the pairs. ``stability_latents`` is there
    where not all rows were matched: the least number that were.
    """
    pairs = [pair for group in decoders for pair in itertools.combinations(group, 2)]
    if not pairs:
        return {}
    counts = [(len(one), len(other)) for one, other in pairs]
    sampled = [matches(*sizes) for sizes in counts if matches(*sizes) < min(sizes)]
    means, halves = zip(*(_with_halves(*pair) for pair in pairs), strict=True)
    found = {"stability": fmean(means), "stability_halves": fmean(halves)}
    return {**found, "stability_latents": float(min(sampled))} if sampled else found


@torch.no_grad()
def _with_halves(first_FD: Tensor, second_FD: Tensor) -> tuple[float, float]:
    """``best_match``, and the difference of two halves of the matched pairs, NaN for fewer than two."""
    if not (len(first_FD) and len(second_FD)):
        return float("nan"), float("nan")
    cosine = _matched(first_FD, second_FD)
    halves = [float(cosine[at::2].mean(dtype="float64")) for at in (0, 1) if len(cosine) > 1]
    difference = abs(halves[0] - halves[1]) if halves else float("nan")
    return float(cosine.mean(dtype="float64")), difference


def stability(first: "SAE", second: "SAE", rows: Tensor | Iterable[Tensor]) -> float:
    """How similar the dictionaries of two SAEs are, such as of two seeds, from -1 to 1.

    It is ``best_match`` of the decoder rows of the latents that fire on ``rows`` (``[rows, d_in]``,
    or batches of them). NaN when one SAE has no live latent. It takes seconds: of more than 4,096 live
    latents a sample is matched.
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
