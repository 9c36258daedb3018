"""The rule ``auto``: what the indicators of ``raysae.sweep.selection.indicators`` say together.

d_sae is that of the knee. At it, K is where explained variance bends, which errs low; where the decoder's
cosine, which errs high, is least at a K not far above, K is between the two, at the geometric mean. Where
nothing bends, agreement of seeds tells K, and without a second seed the projection onto the decoder. All
indicators together give an interval for K and d_sae, of a tried step to each side at least.
Where a smaller dictionary explains as much, up to noise, it is taken. Where the trials give nothing to go
by, the choice is that of ``parsimonious``, and the reason says so.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from raysae.records.rows import TrialRow
from raysae.sweep.selection.choice import Choice
from raysae.sweep.selection.indicators import (
    NOISE,
    Indicator,
    Tried,
    dead_share,
    knee_of_d_sae,
    live_latents,
    of_k,
)

HALF_DEAD = 0.5
FAR = 4
"""The cosine counts up to so many times the K of the bend: farther, it is least by what K alone does."""
FEW = 12
"""Fewer configs than this are a reason for doubt."""


@dataclass(frozen=True)
class Interval:
    """The values of a setting that the indicators do not exclude, and the one to take."""

    best: int
    low: int
    high: int
    open_above: bool = False

    @classmethod
    def at(cls, value: int) -> "Interval":
        """The one value that was tried."""
        return cls(value, value, value)

    @property
    def words(self) -> str:
        """Such as ``4 to 8``, ``4`` or ``8 or more``."""
        if self.open_above:
            return f"{self.low} or more"
        return str(self.low) if self.low == self.high else f"{self.low} to {self.high}"

    @property
    def entry(self) -> list[int | None]:
        """The interval in ``selection.json``; None above where it is open."""
        return [self.low, None if self.open_above else self.high]

    def distance(self, value: int) -> float:
        """Doublings from the best value, those outside the interval counted twice."""
        nearest = max(self.low, value if self.open_above else min(value, self.high))
        return abs(math.log2(value / self.best)) + abs(math.log2(value / nearest))

    def with_(self, value: int) -> "Interval":
        """The interval, widened to hold the value of the trial that is chosen."""
        return replace(self, low=min(self.low, value), high=max(self.high, value))

    def steps(self, values: Sequence[int]) -> int:
        """How many tried values its ends are apart."""
        return values.index(self.high) - values.index(self.low)

    def is_wide(self, values: Sequence[int], most: int) -> bool:
        """Whether its ends are more than ``most`` tried values apart, or it holds all of several."""
        return self.steps(values) > most or 1 < len(values) == self.steps(values) + 1


def auto(candidates: Sequence[TrialRow], otherwise: Choice) -> Choice:
    """The choice among the candidates, of which there is at least one; ``otherwise`` is that of
    ``parsimonious``."""
    problem = _no_ground(candidates)
    if problem is not None:
        return _parsimonious(otherwise, problem, candidates)
    tried = Tried(candidates)
    if tried.ev is None:
        return _parsimonious(otherwise, tried.how, candidates)
    alike = _alike(tried)
    if alike is not None:
        return alike
    size, says_k, k = _size_and_k(tried)
    if k is None:
        return _parsimonious(otherwise, _nothing_of_k(says_k), candidates, says_k)
    live = live_latents(tried, k.best)
    d_sae = _d_sae(tried, size, live)
    chosen = _leanest(tried, _nearest(tried, d_sae, k), k)
    found = d_sae.with_(chosen.d_sae), k.with_(chosen["sae.k"])
    return _told(tried, chosen, *found, [size, live, *says_k])


def _no_ground(candidates: Sequence[TrialRow]) -> str | None:
    """Why these trials cannot be compared; None when they can."""
    without = sorted({row.variant for row in candidates if row.k is None})
    if without:
        return f"there is no K in {', '.join(without)}, which the indicators are about"
    configs = {(row.d_sae, row.k) for row in candidates}
    if len(configs) == 1:
        return "one config alone was finished, so there is nothing to compare it with"
    return None


def _alike(tried: Tried) -> Choice | None:
    """The smallest config, where seeds differ more than configs do; else None."""
    values = [row.explained_variance for row in tried.rows]
    if tried.rows[0].get("explained_variance_seeds") is None:
        return None
    noise = NOISE * math.sqrt(2) * tried.noise("explained_variance", max(values))
    if max(values) - min(values) > noise:
        return None
    smallest = min(tried.rows, key=lambda row: (row.d_sae, row.l0, row.trial))
    why = (
        f"the configs' explained variances are within {max(values) - min(values):.4f}, the noise "
        f"between seeds is {noise:.4f}: no two can be told apart"
    )
    more: dict[str, Any] = {"interval": None, "sure": "unsure", "why": why, "indicators": []}
    return Choice(smallest.trial, f"{smallest.name} is the smallest (unsure: {why})", more)


def _size_and_k(tried: Tried) -> tuple[Indicator, list[Indicator], Interval | None]:
    """The knee's d_sae and what is said of K there; d_sae first by all K, then by those near that K,
    where seeds agree on one: without them K is too uncertain for that."""
    size, k = knee_of_d_sae(tried), None
    for _ in range(2):
        says = of_k(tried, 0 if size.value is None else tried.d_values.index(size.value))
        k = _k_between(tried, says)
        if k is None or says[0].value is None or knee_of_d_sae(tried, k.best) == size:
            break
        size = knee_of_d_sae(tried, k.best)
    return size, says, k


def _k_between(tried: Tried, says: Sequence[Indicator]) -> Interval | None:
    """K between the bend, which errs low, and what errs high; None when no indicator says anything."""
    if len(tried.k_values) == 1:
        return Interval.at(tried.k_values[0])
    agreement, bend, cosine, projection = says
    second = projection if agreement.value is None else agreement
    bends = None if bend.open_above else bend.value
    in_order = (bends, second.value, bend.value, cosine.value)
    low = next((value for value in in_order if value is not None), None)
    if low is None:
        return None
    high = cosine.value
    middle = math.sqrt(low * high) if high is not None and low < high <= FAR * low else float(low)
    best = min(tried.k_values, key=lambda k: (round(abs(math.log2(k / middle)), 6), -k))
    named = [end for one in says for end in (one.low, one.value) if end is not None]
    named += _beside(best, tried.k_values)
    is_open = all(one.open_above for one in says if one.value is not None)
    return Interval(best, min(named), max(named), is_open)


def _beside(best: int, values: Sequence[int]) -> list[int]:
    """The value with its neighbours among those tried: no indicator tells more exactly than that."""
    place = values.index(best)
    return list(values[max(place - 1, 0) : place + 2])


def _nothing_of_k(says: Sequence[Indicator]) -> str:
    return "no indicator says anything of K: " + "; ".join(f"{s.name}: {s.words}" for s in says)


def _d_sae(tried: Tried, size: Indicator, live: Indicator) -> Interval:
    """d_sae by the knee; where explained variance still rises, the size that the live latents fill."""
    named = [one.value for one in (size, live) if one.value is not None]
    if not named:
        return Interval.at(tried.d_values[0])
    best = size.value if size.value is not None else named[0]
    filled = live.value is None or live.value >= tried.d_values[-1]
    if size.open_above and live.value is not None and not filled:
        best = live.value
    named += _beside(best, tried.d_values)
    return Interval(best, min(named), max(named), size.open_above and filled)


def _nearest(tried: Tried, d_sae: Interval, k: Interval) -> TrialRow:
    """The trial nearest to the best config, in doublings; the smaller of two that are equally near.

    A doubling outside an interval counts twice.
    """

    def distance(row: TrialRow) -> float:
        return round(d_sae.distance(row.d_sae) + k.distance(row["sae.k"]), 6)

    return min(tried.rows, key=lambda row: (distance(row), row.d_sae, row["sae.k"], row.trial))


def _leanest(tried: Tried, chosen: TrialRow, k: Interval) -> TrialRow:
    """A trial with a smaller dictionary that explains as much as ``chosen``, up to noise, or that one.

    Its K may be no larger, or up to twice as large where at least half of the chosen latents are dead.
    """
    noise = tried.noise("explained_variance", chosen.explained_variance)
    floor = chosen.explained_variance - NOISE * math.sqrt(2) * noise
    most = chosen["sae.k"] * (2 if dead_share(chosen) >= HALF_DEAD else 1)
    as_good = [
        row
        for row in tried.rows
        if row.d_sae < chosen.d_sae
        and k.low / 2 <= row["sae.k"] <= most
        and row.explained_variance >= floor
        and dead_share(row) <= dead_share(chosen)
    ]
    return min(as_good, key=lambda row: (row.d_sae, row["sae.k"], row.trial), default=chosen)


def _told(
    tried: Tried, chosen: TrialRow, d_sae: Interval, k: Interval, says: Sequence[Indicator]
) -> Choice:
    doubts = _doubts(tried, chosen, d_sae, k)
    wide = k.steps(tried.k_values) > 4 or d_sae.steps(tried.d_values) > 2
    sure = "unsure" if wide or len(doubts) > 1 else "likely" if doubts else "sure"
    why = "; ".join(doubts) or "the indicators agree"
    reason = (
        f"{chosen.name}, explained variance {chosen.explained_variance:.4f}, "
        f"{dead_share(chosen):.1%} of its latents silent on the validation rows; K {k.words}, "
        f"d_sae {d_sae.words} ({sure}: {why})"
    )
    more = {
        "interval": {"sae.k": k.entry, "sae.d_sae": d_sae.entry},
        "sure": sure,
        "why": why,
        "indicators": [one.entry for one in says],
    }
    return Choice(chosen.trial, reason, more)


def _doubts(tried: Tried, chosen: TrialRow, d_sae: Interval, k: Interval) -> list[str]:
    """Why the choice may be wrong; empty when nothing speaks against it."""
    found = []
    if all(row.stability is None for row in tried.rows):
        found.append(second_seed(tried.rows))
    if k.open_above:
        found.append("larger K were not tried")
    elif k.is_wide(tried.k_values, 3):
        found.append(f"the indicators give K {k.words}")
    if d_sae.open_above:
        found.append("larger d_sae were not tried")
    elif d_sae.is_wide(tried.d_values, 2):
        found.append(f"the indicators give d_sae {d_sae.words}")
    configs = {(row.d_sae, row.k) for row in tried.rows}
    if (d_sae.best, k.best) not in configs:
        found.append(f"d_sae {d_sae.best}, K {k.best} was not tried")
    elif (chosen.d_sae, chosen.k) != (d_sae.best, k.best):
        found.append(f"d_sae {d_sae.best}, K {k.best} explains no more")
    if len(configs) < FEW:
        found.append(f"{len(configs)} configs are few")
    return found


def second_seed(rows: Sequence[TrialRow]) -> str:
    """What a second seed would tell, and cost in training tokens: the same on every machine."""
    tokens = sum(row.get("tokens") or 0 for row in rows)
    cost = f", for {tokens:,} training tokens more" if tokens else ""
    return f"one seed; a second (sweep.seeds_per_trial=2) would tell which K is stable{cost}"


def _parsimonious(
    otherwise: Choice, problem: str, candidates: Sequence[TrialRow],
    says: Sequence[Indicator] = (),
) -> Choice:  # fmt: skip
    """The choice of ``parsimonious``, named as such."""
    more: dict[str, Any] = {
        "interval": None, "sure": "unsure", "why": problem, "fallback": "parsimonious",
        "indicators": [one.entry for one in says],
    }  # fmt: skip
    reason = f"nothing to go by ({problem}), so by parsimonious: {otherwise.reason}"
    return Choice(otherwise.trial, reason, more)
