"""Features of two SAEs matched one to one, and what matching finds where nothing belongs together.

The measure of a pair is the cosine of their decoder rows, the correlation (Pearson) of their activations
over the rows that both sites have, or the mean of the two. Null matches come from the same features with
the second site's rows permuted by sequence, and its decoder turned by a random rotation or made of random
rows with its second moments.

Shapes: N rows, D d_in, A and B features of the first and second side.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raysae.analysis.site_latents import SiteLatents

Measure = Literal["mean", "cosine", "correlation"]
Null = Literal["rotation", "moments"]
Matrix = NDArray[np.float64]
ROTATION_ROUNDS = 3


@dataclass(frozen=True)
class Features:
    """Some features of an SAE at a site: their decoder rows and their activations."""

    number: NDArray[np.int64]
    """Their numbers among the SAE's latents, in order: ``[A]``."""
    decoder_AD: Matrix
    """Of norm 1."""
    rows: SiteLatents
    """Of these features alone: ``[N, A]``."""

    def __len__(self) -> int:
        return len(self.number)


@dataclass(frozen=True)
class Match:
    """Pairs of features: the best one-to-one assignment."""

    first: NDArray[np.int64]
    second: NDArray[np.int64]
    """Places among each side's features, ``[pairs]``."""
    score: Matrix
    """Each pair's measure, ``[pairs]``."""


def features_of(
    latents: SiteLatents, W_dec_FD: Tensor, fires: int, most: int
) -> tuple[Features, int]:
    """The features that are active on ``fires`` rows at least, of more than ``most`` the densest; and
    how many are live, active on any row."""
    count_F = latents.fires()
    usable = np.flatnonzero(count_F >= fires)
    densest = usable[np.argsort(-count_F[usable], kind="stable")[:most]]
    chosen = np.sort(densest)
    rows = SiteLatents(latents.active_NF[:, chosen], latents.sequence, latents.token_index)
    return Features(chosen, unit_rows(W_dec_FD[torch.from_numpy(chosen)]), rows), int(
        (count_F > 0).sum()
    )


def unit_rows(W_dec_FD: Tensor) -> Matrix:
    """Decoder rows of norm 1, in float64."""
    return torch.nn.functional.normalize(W_dec_FD.detach().double().cpu(), dim=1).numpy()


def correlations(first: SiteLatents, second: SiteLatents) -> Matrix:
    """The correlation of each latent of the first with each of the second over the rows: ``[A, B]``.

    Row i of both belongs together. 0 where a latent does not vary.
    """
    n = max(len(first), 1)
    (one, one_mean, one_sd), (other, other_mean, other_sd) = _moments(first), _moments(second)
    covariance_AB = (one.T @ other).toarray() / n - np.outer(one_mean, other_mean)
    scale_AB = np.outer(one_sd, other_sd)
    found = np.divide(covariance_AB, scale_AB, out=np.zeros_like(scale_AB), where=scale_AB > 0)
    return np.clip(found, -1.0, 1.0)


def _moments(latents: SiteLatents) -> tuple[Any, Matrix, Matrix]:
    active_NF, n = latents.active_NF, max(len(latents), 1)
    mean_F = np.asarray(active_NF.sum(axis=0)).reshape(-1) / n
    square_F = np.asarray(active_NF.power(2).sum(axis=0)).reshape(-1) / n
    variance_F = square_F - mean_F**2
    variance_F[variance_F <= 1e-12 * square_F] = 0  # a constant, but for rounding
    return active_NF, mean_F, np.sqrt(variance_F)


def measured(cosine_AB: Matrix, correlation_AB: Matrix, measure: Measure) -> Matrix:
    """The measure of each pair."""
    if measure == "mean":
        return (cosine_AB + correlation_AB) / 2
    return cosine_AB if measure == "cosine" else correlation_AB


def assigned(score_AB: Matrix) -> Match:
    """The one-to-one assignment of the largest sum (the Hungarian method)."""
    from scipy.optimize import linear_sum_assignment

    first, second = linear_sum_assignment(score_AB, maximize=True)
    return Match(first, second, score_AB[first, second])


def permuted_rows(sequence: NDArray[np.int64], random: np.random.Generator) -> tuple[Any, Any]:
    """Pairs of rows in which each sequence meets another one: row numbers of either side.

    ``sequence`` is each row's, in order. The t-th row of a sequence meets the t-th row of the other, so
    that what only a token's place explains stays; rows beyond the shorter one's end are left out.
    """
    _, start, count = np.unique(sequence, return_index=True, return_counts=True)
    other = random.permutation(len(start))
    length = np.minimum(count, count[other])
    place = np.arange(length.sum()) - np.repeat(np.cumsum(length) - length, length)
    return np.repeat(start, length) + place, np.repeat(start[other], length) + place


def rotated(rows_BD: Matrix, random: np.random.Generator) -> Matrix:
    """The rows turned by a random rotation or reflection: rounds of random signs, a random order of the
    dimensions, and a cosine transform, which costs D log D a row at any width."""
    from scipy.fft import dct

    width = rows_BD.shape[1]
    for _ in range(ROTATION_ROUNDS):
        signs = random.choice([-1.0, 1.0], size=width)
        rows_BD = dct((rows_BD * signs)[:, random.permutation(width)], norm="ortho", axis=1)
    return rows_BD


def of_moments(rows_BD: Matrix, random: np.random.Generator) -> Matrix:
    """Random rows of norm 1: sums of the rows with normal weights, so that they have their second moments
    and lie where they lie."""
    drawn_BD = random.standard_normal((len(rows_BD), len(rows_BD))) @ rows_BD
    return drawn_BD / np.linalg.norm(drawn_BD, axis=1, keepdims=True)


def _turned(rows_BD: Matrix, null: Null, random: np.random.Generator) -> Matrix:
    return rotated(rows_BD, random) if null == "rotation" else of_moments(rows_BD, random)


def null_matches(
    first: Features, second: Features, measure: Measure, null: Null, draws: int, seed: list[int],
    alive: Callable[[], None] = lambda: None,
) -> Iterator[Matrix]:  # fmt: skip
    """The scores of the best matches, ``[pairs]``, of each of ``draws`` permutations."""
    for draw in range(draws):
        random = np.random.default_rng([*seed, draw])
        cosine_AB = np.zeros((len(first), len(second)))
        correlation_AB = cosine_AB
        if measure != "correlation":
            cosine_AB = first.decoder_AD @ _turned(second.decoder_AD, null, random).T
        if measure != "cosine":
            one, other = permuted_rows(first.rows.sequence, random)
            correlation_AB = correlations(first.rows.take(one), second.rows.take(other))
        yield assigned(measured(cosine_AB, correlation_AB, measure)).score
        alive()


def threshold_of(null: list[Matrix], rate: float) -> float:
    """The score that null matches exceed at most at this rate."""
    return float(np.quantile(np.concatenate(null), 1 - rate, method="higher"))


@dataclass(frozen=True)
class Matched:
    """The features of two sides matched, with what permuted rows and a turned decoder give."""

    pairs: Match
    cosine: Matrix
    correlation: Matrix
    """Of each pair; NaN where it was not computed."""
    kept: NDArray[np.bool_]
    """Whether a pair's score is above the threshold."""
    threshold: float
    null_mean: float
    """The mean score of the null's matches."""
    control: Matrix
    """The scores of one more permutation, which the threshold was not chosen by."""

    @property
    def n(self) -> int:
        """The number of pairs: the features of the side that has fewer."""
        return len(self.pairs.score)

    @property
    def control_kept(self) -> int:
        """The control's pairs above the threshold."""
        return int((self.control > self.threshold).sum())


def matched(
    first: Features, second: Features, measure: Measure, null: Null, draws: int, rate: float,
    seed: list[int], alive: Callable[[], None] = lambda: None,
) -> Matched:  # fmt: skip
    """Match the features of two sides whose rows belong together one by one.

    The threshold is the score that the null's matches exceed at a rate of ``rate`` in ``draws``
    permutations. Both sides have at least one feature.
    """
    shape = len(first), len(second)
    cosine_AB, correlation_AB = np.full(shape, np.nan), np.full(shape, np.nan)
    if measure != "correlation":
        cosine_AB = first.decoder_AD @ second.decoder_AD.T
    if first.rows.active_NF.shape[0]:
        correlation_AB = correlations(first.rows, second.rows)
    alive()
    pairs = assigned(measured(cosine_AB, correlation_AB, measure))
    *scores, control = null_matches(first, second, measure, null, draws + 1, seed, alive)
    threshold = threshold_of(scores, rate)
    places = pairs.first, pairs.second
    return Matched(
        pairs, cosine_AB[places], correlation_AB[places], pairs.score > threshold, threshold,
        float(np.concatenate(scores).mean()), control,
    )  # fmt: skip
