"""Probes: logistic regressions on standardised columns, evaluated by nested cross-validation.

Shapes: N sequences, M columns, L labellings (the labels and their permutations), K folds.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raysae.analysis.detecting.scores import Floats, auroc

OUTER, INNER = 5, 3
"""Folds of the evaluation, and within each training part those that C is chosen on."""
STRENGTHS = (1e-3, 1e-2, 1e-1, 1.0)
"""Values of C, of which that with the best mean AUROC on the inner folds is taken."""
SPARSE = (1, 2, 5, 10)
"""Numbers of columns of the sparse probes."""
ITERATIONS, TOLERANCE = 200, 1e-3
Columns = Callable[[int], NDArray[Any]]
"""The columns ``[N, M]`` of a fold of the evaluation; what chose them saw only its training part."""


@dataclass(frozen=True)
class Labelling:
    """Two classes with the fold of each sequence: sequences of a group share a fold."""

    label_N: NDArray[np.bool_]
    fold_N: NDArray[np.int64]
    group_N: NDArray[np.int64]
    seed: int

    @classmethod
    def of(cls, label_N: NDArray[np.bool_], group_N: NDArray[np.int64], seed: int) -> "Labelling":
        """The labels with folds that hold alike shares of both classes."""
        return cls(label_N, folds_of(label_N, group_N, OUTER, seed), group_N, seed)

    def permuted(self, times: int, key: int) -> "list[Labelling]":
        """The same with the labels in random order, ``times`` over, each with folds of its own.

        Another ``key`` gives other orders.
        """
        found = []
        for number in range(1, times + 1):
            random = np.random.default_rng([self.seed, key, number])
            label_N = random.permutation(self.label_N)
            found.append(Labelling.of(label_N, self.group_N, self.seed + number))
        return found

    def base_rates(self) -> Floats:
        """For each sequence the share of positives in the training part of its fold, ``[N]``."""
        rates = [self.label_N[self.fold_N != fold].mean() for fold in range(OUTER)]
        return np.array(rates)[self.fold_N]

    def take(self, rows: NDArray[Any]) -> "Labelling":
        """The labelling of some of the sequences, in their folds."""
        return Labelling(self.label_N[rows], self.fold_N[rows], self.group_N[rows], self.seed)


def folds_of(
    label_N: NDArray[np.bool_], group_N: NDArray[np.int64], folds: int, seed: int
) -> NDArray[np.int64]:
    """The fold of each sequence, ``[N]``: groups are never divided, and classes alike in all.

    Groups in random order, the largest first, each go to the fold that has the smallest share of their
    classes so far.
    """
    _, place_N = np.unique(group_N, return_inverse=True)
    positive_G = np.bincount(place_N[label_N], minlength=int(place_N.max()) + 1)
    negative_G = np.bincount(place_N) - positive_G
    order_G = np.random.default_rng([seed, folds]).permutation(len(positive_G))
    order_G = order_G[np.argsort(-(positive_G + negative_G)[order_G], kind="stable")]
    weights = [1 / max(int(count.sum()), 1) ** 2 for count in (positive_G, negative_G)]
    there = [[0, 0] for _ in range(folds)]
    fold_G = np.zeros(len(positive_G), np.int64)
    groups = zip(
        order_G.tolist(), positive_G[order_G].tolist(), negative_G[order_G].tolist(), strict=True
    )
    for group, *counts in groups:
        costs = [
            sum(w * n * has for w, n, has in zip(weights, counts, fold, strict=True))
            for fold in there
        ]
        least = min(range(folds), key=lambda number: (costs[number], sum(there[number]), number))
        fold_G[group] = least
        there[least] = [has + n for has, n in zip(there[least], counts, strict=True)]
    return fold_G[place_N]


def predicted(
    columns: Columns, labelling: Labelling, alive: Callable[[], None]
) -> tuple[Floats, list[float]]:
    """The out-of-fold probabilities ``[N]``, and the C that each fold's training part chose."""
    score_N, chosen = np.zeros(len(labelling.label_N)), []
    for fold in range(OUTER):
        train, held_out = _parts(labelling.fold_N, fold)
        x_NM = columns(fold)
        strength = _strength(x_NM[train], labelling.take(train), alive)
        score_N[held_out] = _fitted(x_NM[train], labelling.label_N[train], strength)(x_NM[held_out])
        chosen.append(strength)
        alive()
    return score_N, chosen


def predicted_plain(columns: Columns, labelling: Labelling, alive: Callable[[], None]) -> Floats:
    """The out-of-fold probabilities ``[N]`` of a probe on few columns, with C = 1."""
    score_N = np.zeros(len(labelling.label_N))
    for fold in range(OUTER):
        train, held_out = _parts(labelling.fold_N, fold)
        x_NM = columns(fold)
        score_N[held_out] = _fitted(x_NM[train], labelling.label_N[train], 1.0)(x_NM[held_out])
    alive()
    return score_N


def _parts(fold_N: NDArray[np.int64], fold: int) -> tuple[NDArray[Any], NDArray[Any]]:
    return np.flatnonzero(fold_N != fold), np.flatnonzero(fold_N == fold)


def _strength(x_NM: NDArray[Any], training: Labelling, alive: Callable[[], None]) -> float:
    """The C with the best mean AUROC over the inner folds; the smallest of those that are alike."""
    inner_N = folds_of(training.label_N, training.group_N, INNER, training.seed)
    total = np.zeros(len(STRENGTHS))
    for fold in range(INNER):
        train, held_out = _parts(inner_N, fold)
        model = None
        for place, strength in enumerate(STRENGTHS):
            scores = _fitted(x_NM[train], training.label_N[train], strength, model)
            total[place] += auroc(training.label_N[held_out], scores(x_NM[held_out]))
            model = scores.model
        alive()
    return STRENGTHS[int(np.nanargmax(np.round(total, 6)))]


@dataclass(frozen=True)
class Fitted:
    """A logistic regression with the means and spreads of its columns."""

    mean_M: Any
    spread_M: Any
    model: Any

    def __call__(self, x_NM: NDArray[Any]) -> Floats:
        """The probabilities ``[N]`` of the positive class."""
        return self.model.predict_proba((x_NM - self.mean_M) / self.spread_M)[:, 1].astype(float)


def _fitted(
    x_NM: NDArray[Any], label_N: NDArray[np.bool_], strength: float, start: Any = None
) -> Fitted:
    """A logistic regression on standardised columns; a constant column counts for nothing.

    ``start`` is a fitted model of the same rows, from whose weights it begins.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    x_NM = np.asarray(x_NM, np.float64)
    mean_M, spread_M = x_NM.mean(axis=0), x_NM.std(axis=0)
    spread_M[spread_M < 1e-9 * (1 + np.abs(mean_M))] = np.inf
    model = LogisticRegression(
        C=strength, tol=TOLERANCE, max_iter=ITERATIONS, warm_start=start is not None
    )
    if start is not None:
        model.coef_, model.intercept_ = start.coef_.copy(), start.intercept_.copy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit((x_NM - mean_M) / spread_M, label_N)
    return Fitted(mean_M, spread_M, model)


def largest(values_M: Floats, count: int) -> NDArray[np.int64]:
    """The numbers of the ``count`` largest values, sorted; of equal ones the first."""
    order = np.argsort(-values_M, kind="stable")[:count]
    return np.sort(order)


@dataclass
class Moments:
    """Sums over the sequences of every labelling's folds and classes, from which columns are chosen.

    ``count`` is ``[L, K, 2]``, ``total`` ``[L, K, 2, M]`` and ``square`` ``[L, K, M]``.
    """

    labellings: Sequence[Labelling]
    count: Floats
    total: Floats
    square: Floats

    @classmethod
    def none(cls, labellings: Sequence[Labelling], columns: int) -> "Moments":
        """Those of no sequence."""
        shape = (len(labellings), OUTER, 2)
        return cls(
            labellings, np.zeros(shape), np.zeros((*shape, columns)),
            np.zeros((*shape[:2], columns)),
        )  # fmt: skip

    def add(self, rows: NDArray[np.int64], x_NM: NDArray[Any]) -> None:
        """Take in the columns of the sequences with the numbers ``rows``."""
        x_NM = np.asarray(x_NM, np.float64)
        square_NM = x_NM**2
        for number, one in enumerate(self.labellings):
            cell_N = one.fold_N[rows] * 2 + one.label_N[rows]
            member_CN = (cell_N == np.arange(2 * OUTER)[:, None]).astype(np.float64)
            self.count[number] += member_CN.sum(axis=1).reshape(OUTER, 2)
            self.total[number] += (member_CN @ x_NM).reshape(OUTER, 2, -1)
            self.square[number] += (member_CN @ square_NM).reshape(OUTER, 2, -1).sum(axis=1)

    def variance(self, labelling: int, fold: int) -> Floats:
        """Each column's variance ``[M]`` over the training part of a fold."""
        kept = np.arange(OUTER) != fold
        n = self.count[labelling, kept].sum()
        mean_M = self.total[labelling, kept].sum(axis=(0, 1)) / n
        return np.maximum(self.square[labelling, kept].sum(axis=0) / n - mean_M**2, 0.0)

    def difference(self, labelling: int, fold: int) -> Floats:
        """Each column's absolute difference ``[M]`` of the classes' means over the training part."""
        kept = np.arange(OUTER) != fold
        n_C = self.count[labelling, kept].sum(axis=0)
        mean_CM = self.total[labelling, kept].sum(axis=0) / np.maximum(n_C, 1)[:, None]
        return np.abs(mean_CM[1] - mean_CM[0])
