"""Sums over a site's rows, for every feature at once: how often, how strongly, where, on which tokens.

Their size does not grow with the rows. Shapes: F d_sae, A attributes, B bins, N rows.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from raysae.analysis.labelling.rows import Chunk

BINS_PER_OCTAVE, LOWEST, BINS = 2, -20, 80
"""Bins of activations: from 2**-20 to 2**20, two an octave; the end bins take what lies beyond."""
MOST_PAIRS = 2**22
"""Counts of a token at a feature that wait to be added up."""
Counts = NDArray[np.int64]


def bin_edges() -> NDArray[np.float64]:
    """The edges of the bins of activations, ``[B + 1]``."""
    return 2.0 ** (LOWEST + np.arange(BINS + 1) / BINS_PER_OCTAVE)


class Tallies:
    """How often and how strongly each feature is active, and at which places of the sequences."""

    def __init__(self, d_sae: int):
        self.d_sae, self.rows = d_sae, 0
        self.active_F = np.zeros(d_sae, np.int64)
        self.first_F = np.zeros(d_sae, np.int64)
        """Active rows that are the first token of their sequence."""
        self.sum_F, self.square_F = np.zeros(d_sae), np.zeros(d_sae)
        self.index_F = np.zeros(d_sae)
        """The sum of the places (``token_index``) of the active rows."""
        self.most_F = np.zeros(d_sae, np.float32)
        self.bins_FB = np.zeros((d_sae, BINS), np.int64)
        self.tokens = TokenCounts()

    def add(self, chunk: Chunk) -> None:
        """Take in a chunk of rows."""
        self.rows += len(chunk.rows)
        feature, value = chunk.feature, chunk.value.astype(np.float64)
        place = chunk.rows.token_index[chunk.row]
        self.active_F += self._count(feature)
        self.first_F += self._count(feature[place == 0])
        self.sum_F += np.bincount(feature, value, self.d_sae)
        self.square_F += np.bincount(feature, value**2, self.d_sae)
        self.index_F += np.bincount(feature, place.astype(np.float64), self.d_sae)
        np.maximum(self.most_F, chunk.features_NF.amax(0).numpy(), out=self.most_F)
        octave = np.floor(np.log2(value) * BINS_PER_OCTAVE).astype(np.int64)
        number = np.clip(octave - LOWEST * BINS_PER_OCTAVE, 0, BINS - 1)
        pairs = np.bincount(feature * BINS + number, minlength=self.d_sae * BINS)
        self.bins_FB += pairs.reshape(self.d_sae, BINS)
        self.tokens.add(feature, chunk.rows.token_id[chunk.row], chunk.rows.token_id)

    def _count(self, feature: NDArray[np.int64]) -> Counts:
        return np.bincount(feature, minlength=self.d_sae)


class TokenCounts:
    """How often each feature is active at each token of the vocabulary; pairs that occur are held."""

    def __init__(self) -> None:
        self._key, self._count = np.empty(0, np.int64), np.empty(0, np.int64)
        self._waiting: list[NDArray[np.int64]] = []
        self._held = 0
        self.of_token: Counts = np.zeros(0, np.int64)
        """Rows of each token, by id."""

    def add(self, feature: Counts, token_id: Counts, all_ids: Counts) -> None:
        """Take in the active features with their tokens, and the tokens of all rows."""
        self._waiting.append((feature << 32) | token_id)
        self._held += len(feature)
        longer = np.bincount(all_ids, minlength=len(self.of_token))
        longer[: len(self.of_token)] += self.of_token
        self.of_token = longer
        if self._held > MOST_PAIRS:
            self._add_up()

    def _add_up(self) -> None:
        new, counts = np.unique(np.concatenate([*self._waiting, self._key]), return_counts=True)
        counts[np.searchsorted(new, self._key)] += self._count - 1
        self._key, self._count = new, counts
        self._waiting, self._held = [], 0

    def most_frequent(self, d_sae: int, most: int) -> "FrequentTokens":
        """The ``most`` commonest tokens of each feature, and how spread its tokens are."""
        if self._waiting:
            self._add_up()
        feature, token = self._key >> 32, self._key & 0xFFFFFFFF
        order = np.lexsort((token, -self._count, feature))
        feature, token, count = feature[order], token[order], self._count[order]
        total_F = np.bincount(feature, count, d_sae)
        share = count / total_F[feature]
        bits_F = np.bincount(feature, -share * np.log2(share), d_sae).astype(np.float64)
        kinds_F = np.bincount(feature, minlength=d_sae)
        starts_F = np.cumsum(kinds_F) - kinds_F
        kept = np.arange(len(feature)) - starts_F[feature] < most
        return FrequentTokens(
            feature[kept], token[kept], count[kept], share[kept],
            count[kept] / self.of_token[token[kept]], bits_F, kinds_F,
        )  # fmt: skip


@dataclass(frozen=True)
class FrequentTokens:
    """The commonest tokens of the features, an item a pair, by feature and count."""

    feature: NDArray[np.int64]
    token: NDArray[np.int64]
    count: NDArray[np.int64]
    share: NDArray[np.float64]
    """Of the feature's active rows."""
    fires: NDArray[np.float64]
    """The share of the token's rows at which the feature is active."""
    bits_F: NDArray[np.float64]
    """The entropy of the tokens of the active rows, in bits."""
    kinds_F: NDArray[np.int64]
    """Different tokens."""


class Correlations:
    """Sums for the correlation of each feature's activation with attributes of the tokens.

    ``seed`` draws the control: the same attributes, permuted among the rows of a chunk.
    """

    def __init__(self, d_sae: int, attributes: int, seed: int):
        shape = (d_sae, attributes)
        self.product_FA, self.control_FA = np.zeros(shape), np.zeros(shape)
        self.known_FA, self.known_square_FA = np.zeros(shape), np.zeros(shape)
        """The sums of the activation, and of its square, over rows whose attribute is known."""
        self.active_FA, self.with_FA = np.zeros(shape), np.zeros(shape)
        """Active rows whose attribute is known, and those of them that have it (sum of the attribute)."""
        self.sum_A, self.square_A = np.zeros(attributes), np.zeros(attributes)
        self.n_A = np.zeros(attributes)
        self._random = np.random.default_rng(seed)

    def add(self, chunk: Chunk, attributes_NA: NDArray[np.float32]) -> None:
        """Take in a chunk and its rows' attributes; NaN where one is not known."""
        known_NA = np.isfinite(attributes_NA)
        filled_NA = np.where(known_NA, attributes_NA, 0)
        f_FN = chunk.features_NF.T
        fires_FN = (chunk.features_NF > 0).float().T
        self.product_FA += _product(f_FN, filled_NA)
        self.control_FA += _product(f_FN, self._permuted(filled_NA, known_NA))
        self.known_FA += _product(f_FN, known_NA)
        self.known_square_FA += _product(f_FN.square(), known_NA)
        self.active_FA += _product(fires_FN, known_NA)
        self.with_FA += _product(fires_FN, filled_NA)
        exact_NA = filled_NA.astype(np.float64)
        self.sum_A += exact_NA.sum(0)
        self.square_A += (exact_NA**2).sum(0)
        self.n_A += known_NA.sum(0)

    def _permuted(
        self, values_NA: NDArray[np.float32], known_NA: NDArray[np.bool_]
    ) -> NDArray[np.float32]:
        """Each attribute's known values in another order, among the rows where it is known."""
        permuted_NA = values_NA.copy()
        for number, known_N in enumerate(known_NA.T):
            rows = np.flatnonzero(known_N)
            permuted_NA[rows, number] = values_NA[self._random.permutation(rows), number]
        return permuted_NA

    def r(self, control: bool = False) -> NDArray[np.float64]:
        """Pearson's r of activation and attribute, ``[F, A]``; NaN where one of them is constant."""
        product_FA = self.control_FA if control else self.product_FA
        with np.errstate(invalid="ignore", divide="ignore"):
            n_A = self.n_A
            covariance_FA = product_FA / n_A - self.known_FA / n_A * (self.sum_A / n_A)
            var_FA = self.known_square_FA / n_A - (self.known_FA / n_A) ** 2
            var_A = self.square_A / n_A - (self.sum_A / n_A) ** 2
            scale_FA = var_FA * var_A
            flat = (var_FA <= 1e-9 * self.known_square_FA / n_A) | (
                var_A <= 1e-9 * self.square_A / n_A
            )
            r_FA = np.where(flat, np.nan, covariance_FA / np.sqrt(scale_FA))
        return np.clip(r_FA, -1, 1)


def _product(one_FN: torch.Tensor, other_NA: NDArray) -> NDArray[np.float64]:
    return (one_FN @ torch.from_numpy(other_NA.astype(np.float32))).double().numpy()
