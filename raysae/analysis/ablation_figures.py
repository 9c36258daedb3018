"""The figures of ablated features: effects with intervals, ranks, and the comparison with random ones.

Shapes: S texts, R draws, G groups of features, K chosen features.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raysae.analysis.ablating import Effects, Texts
from raysae.analysis.intervals import draws_of, limits, ratio

MEASURES = ("ce", "kl", "accuracy", "ce_answer", "away")
"""What is measured, as a change: CE and KL in nats a token, the fraction of answers that are right in all
tokens, CE of the answer's tokens, 1 - cosine of the final embedding (of a model without head)."""
PERMUTATIONS = 10_000
Row = dict[str, Any]
Array = NDArray[np.float64]


class Figures:
    """Changes by measure of every group: over all texts, and in every draw of the bootstrap."""

    def __init__(self, texts: Texts, effects: Effects, head: bool, seed: int):
        self.texts, self.effects, self.seed = texts, effects, seed
        answers = bool(texts.answer.any())
        self.measures = [m for m in MEASURES if _is_defined(m, head, answers)]
        self._sums_SG = {m: self._sums(m) for m in self.measures}
        self._counts_S = {m: self._counts(m) for m in self.measures}
        self._draws_RS = draws_of(len(texts.tokens), seed)

    def change(self, measure: str) -> Array:
        """The change of each group, ``[G]``; NaN where it is undefined."""
        return ratio(self._sums_SG[measure].sum(axis=0), self._counts_S[measure].sum())

    def draws(self, measure: str) -> Array:
        """The change of each group in each draw, ``[R, G]``."""
        counts_R1 = (self._draws_RS @ self._counts_S[measure])[:, None]
        sums_RG = self._draws_RS @ self._sums_SG[measure]
        return ratio(sums_RG, np.broadcast_to(counts_R1, sums_RG.shape))

    def clean(self) -> Row:
        """The figures without changes."""
        texts = self.texts
        found: Row = {"texts": int((texts.tokens > 0).sum()), "tokens": int(texts.tokens.sum())}
        found["ce_clean"] = number(ratio(texts.ce.sum(), texts.tokens.sum()))
        has = texts.answer > 0
        found["answers"] = int(has.sum())
        right = has & (texts.wrong == 0)
        found["accuracy_clean"] = number(ratio(right.sum(), has.sum()))
        return found

    def row(self, group: int) -> Row:
        """One group's changes with their intervals, and how many texts it changes."""
        found: Row = {"texts_changed": int(self.effects.changed[:, group].sum())}
        for measure in self.measures:
            low, high = limits(self._drawn(measure)[:, group])
            found[measure] = number(self.change(measure)[group])
            found |= {f"{measure}_low": number(low), f"{measure}_high": number(high)}
        return found

    def _drawn(self, measure: str) -> Array:
        if not hasattr(self, "_cache"):
            self._cache: dict[str, Array] = {}
        if measure not in self._cache:
            self._cache[measure] = self.draws(measure)
        return self._cache[measure]

    def _sums(self, measure: str) -> Array:
        if measure != "accuracy":
            return self.effects.sums[measure]
        wrong_S1, has_S1 = self.texts.wrong[:, None], self.texts.answer[:, None] > 0
        right_SG = has_S1 & (wrong_S1 + self.effects.sums["wrong"] == 0)
        return right_SG.astype(float) - (has_S1 & (wrong_S1 == 0))

    def _counts(self, measure: str) -> Array:
        if measure == "accuracy":
            return (self.texts.answer > 0).astype(float)
        return self.texts.answer if measure == "ce_answer" else self.texts.tokens


def _is_defined(measure: str, head: bool, answers: bool) -> bool:
    if not head:
        return measure == "away"
    return measure != "away" and (answers or measure not in ("accuracy", "ce_answer"))


def ranked(rows: Sequence[Row], measure: str) -> list[Row]:
    """The rows with ``rank``, from 1: the largest effect of the measure, of either sign, first."""
    order = sorted(
        range(len(rows)), key=lambda n: (-abs(rows[n][measure] or 0.0), rows[n]["feature"])
    )
    ranks = {place: rank for rank, place in enumerate(order, 1)}
    return [{**row, "rank": ranks[place]} for place, row in enumerate(rows)]


def compared(figures: Figures, chosen: Sequence[int], controls: Mapping[int, Sequence[int]]) -> Row:
    """Chosen features against their matched controls, by groups' numbers: the mean change of each, the
    difference with its interval (bootstrap over texts), and the probability of as large a difference if
    chosen and controls were exchanged (within the matches)."""
    pairs = [(one, list(controls[one])) for one in chosen if controls.get(one)]
    if not pairs:
        return {}
    weights_KG = np.zeros((len(pairs), figures.effects.changed.shape[1]))
    for place, (one, others) in enumerate(pairs):
        weights_KG[place, one] = 1.0
        weights_KG[place, others] = -1.0 / len(others)
    found: Row = {"pairs": len(pairs)}
    for measure in figures.measures:
        change_G = figures.change(measure)
        difference_K = weights_KG @ change_G
        drawn_R = figures.draws(measure) @ weights_KG.mean(axis=0)
        low, high = limits(drawn_R)
        found |= {
            f"{measure}_chosen": number(np.mean([change_G[one] for one, _ in pairs])),
            f"{measure}_controls": number(np.mean([change_G[others].mean() for _, others in pairs])),
            f"{measure}_difference": number(difference_K.mean()),
            f"{measure}_low": number(low), f"{measure}_high": number(high),
            f"{measure}_p": permutation_p(difference_K, figures.seed),
        }  # fmt: skip
    return found


def permutation_p(difference_K: Array, seed: int) -> float:
    """The two-sided p-value of a mean difference of matched features: signs are drawn at random, as
    chosen and control would be exchanged within a match. At least 1 / (permutations + 1)."""
    generator = np.random.default_rng(seed)
    sign = generator.integers(0, 2, (PERMUTATIONS, len(difference_K))) * 2 - 1
    drawn = np.abs((sign * difference_K).mean(axis=1))
    reached = abs(difference_K.mean()) * (1 - 1e-12)
    return float((1 + (drawn >= reached).sum()) / (1 + PERMUTATIONS))


def set_compared(figures: Figures, others: Sequence[int]) -> Row:
    """Features ablated together: all chosen ones (group 0), and those that have controls (group 1)
    against sets of these (the groups ``others``)."""
    found: Row = {}
    for measure in figures.measures:
        change_G, drawn_RG = figures.change(measure), figures.draws(measure)
        low, high = limits(drawn_RG[:, 0])
        found |= {
            f"{measure}_set": number(change_G[0]), f"{measure}_set_low": number(low),
            f"{measure}_set_high": number(high),
        }  # fmt: skip
        if others:
            theirs = change_G[others].mean()
            low, high = limits(drawn_RG[:, 1] - drawn_RG[:, others].mean(axis=1))
            found |= {
                f"{measure}_set_matched": number(change_G[1]),
                f"{measure}_set_controls": number(theirs),
                f"{measure}_set_difference": number(change_G[1] - theirs),
                f"{measure}_set_difference_low": number(low),
                f"{measure}_set_difference_high": number(high),
            }
    return found


def number(value: Any) -> float | None:
    """A float for a table; None where it is undefined."""
    return float(value) if np.isfinite(value) else None
