"""What each indicator says of the right d_sae and K, in words; the rule ``auto`` combines them.

- The knee: the d_sae past which a doubling gains less than a quarter of the largest gain of explained
  variance.
- The bend: the K past which, from the steepest part of explained variance on, a doubling first gains less
  than half of what it gains there. What is gained at a K far too large, as dense codes do, is no bend.
- Agreement of seeds: the K around its best at which it stays within a twentieth of that; the largest of
  them is named.
- The decoder's pairwise cosine: the K where it is least; it errs high. It says nothing where it is least
  at the first or last K tried: then what K alone does to it outweighs the rest.
- The n-th largest projection onto the decoder: likewise.
- Live latents: how many of the largest dictionary's latents fire; a dictionary of that size suffices.

Two values that differ by less than twice the noise between seeds count as equal, and the smaller K or
d_sae is named.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np
from numpy.typing import NDArray

from raysae.records.rows import TrialRow
from raysae.sweep.selection.knee import FRACTION, LEAST_GAIN, STABLE_FRACTION, gains, surface_of

Curve = NDArray[np.float64]
NOISE = 2.0
"""Differences up to so many standard deviations between seeds are none."""
UNKNOWN_NOISE = 0.01
"""With one seed: differences up to this fraction of a value count as noise."""
BEND = 0.5
"""Explained variance bends where a doubling of K begins to gain less than this fraction of the most."""
LEAST_ABOVE_CHANCE = 0.1
"""Agreement of seeds by less than this part of what chance leaves is no ground."""


@dataclass(frozen=True)
class Indicator:
    """What one indicator says: a value of K or d_sae, or None, and why."""

    name: str
    key: str
    """``sae.k`` or ``sae.d_sae``."""
    value: int | None
    words: str
    open_above: bool = False
    """Whether the largest value tried is only a lower bound."""
    low: int | None = None
    """The smallest value that it does not exclude, where that is less than ``value``."""

    @property
    def entry(self) -> dict[str, object]:
        """The indicator in ``selection.json``."""
        return {"indicator": self.name, "of": self.key, "value": self.value, "says": self.words}


def dead_share(row: TrialRow) -> float:
    """The share of latents that do not fire on the validation rows, or else in the last training ones."""
    share = row.get("dead_fraction_validation")
    return row.dead_fraction if share is None else float(share)


class Tried:
    """The configs that were tried, with their figures over all their d_sae and K."""

    def __init__(self, rows: Sequence[TrialRow]):
        self.rows = list(rows)
        self.d_values = sorted({row.d_sae for row in rows})
        self.k_values = sorted({int(row["sae.k"]) for row in rows})
        self.ev, self.how = self.over("explained_variance")

    def over(self, metric: str) -> tuple[Curve | None, str]:
        """A metric over all d_sae and K ``[d_sae, K]``, and how it was found; None where too few configs
        have it."""
        points = [
            (row.d_sae, int(row["sae.k"]), float(row[metric]))
            for row in self.rows
            if row.get(metric) is not None and not math.isnan(row[metric])
        ]
        if not points or {d for d, _, _ in points} != set(self.d_values):
            return None, f"too few trials have {metric}"
        if {k for _, k, _ in points} != set(self.k_values):
            return None, f"too few trials have {metric}"
        return surface_of(points, self.d_values, self.k_values)

    def noise(self, metric: str, size: float) -> float:
        """The standard deviation of a trial's ``metric``: the median over the trials of that between
        their seeds, as the mean of the seeds has it. With one seed, ``UNKNOWN_NOISE`` of ``size``."""
        found = [row.get(f"{metric}_seeds") for row in self.rows]
        known = [value for value in found if value is not None and not math.isnan(value)]
        return median(known) / math.sqrt(2) if known else UNKNOWN_NOISE * abs(size) / NOISE

    def possible(self, row: int) -> int:
        """The number of K values that a dictionary of this d_sae can have."""
        return sum(k <= self.d_values[row] for k in self.k_values)


def knee_of_d_sae(tried: Tried, near: int | None = None) -> Indicator:
    """The d_sae past which explained variance rises little, for most K, or most within a doubling of
    ``near``: with a K far too large, a small dictionary suffices for anything."""
    name, values = "knee of explained variance", tried.d_values
    if len(values) < 2:
        return Indicator(name, "sae.d_sae", None, "only one d_sae was tried")
    if tried.ev is None:
        return Indicator(name, "sae.d_sae", None, tried.how)
    noise = NOISE * tried.noise("explained_variance", float(tried.ev.max())) * math.sqrt(2)
    places = []
    for column, k in enumerate(tried.k_values):
        if near is not None and abs(math.log2(k / near)) > 1:
            continue
        usable = [row for row, d in enumerate(values) if d >= k]
        curve = tried.ev[usable, column]
        if len(usable) > 1:
            places.append(usable[0] + _knee(curve, [values[row] for row in usable], noise))
    place = sorted(places)[(len(places) - 1) // 2] if places else 0
    if place == len(values) - 1:
        words = f"it still rises at the largest d_sae tried, {values[-1]}"
        return Indicator(name, "sae.d_sae", values[-1], words, open_above=True)
    words = f"past d_sae {values[place]} a doubling gains less than a quarter of the largest gain"
    return Indicator(name, "sae.d_sae", values[place], words)


def live_latents(tried: Tried, k: int) -> Indicator:
    """The d_sae that the largest dictionaries' live latents would fill, near this K."""
    largest = [row for row in tried.rows if row.d_sae == tried.d_values[-1]]
    near = sorted(largest, key=lambda row: abs(math.log2(int(row["sae.k"]) / k)))[:3]
    if len(tried.d_values) < 2 or not near:
        return Indicator("live latents", "sae.d_sae", None, "only one d_sae was tried")
    live = median((1 - dead_share(row)) * row.d_sae for row in near)
    value = min(tried.d_values, key=lambda d: abs(math.log2(d / max(live, 1))))
    words = f"of d_sae {tried.d_values[-1]} about {live:.0f} latents fire near K {k}"
    return Indicator("live latents", "sae.d_sae", value, words)


def of_k(tried: Tried, row: int) -> list[Indicator]:
    """What all indicators say of K at the d_sae number ``row``."""
    if len(tried.k_values) < 2:
        return [Indicator("all", "sae.k", None, "only one K was tried")]
    return [
        _agreement(tried, row),
        _bend(tried, row),
        _least(tried, row, "decoder_cosine_mean_abs", "cosine of decoder rows"),
        _least(tried, row, "decoder_projection", "projection onto the decoder"),
    ]


def _bend(tried: Tried, row: int) -> Indicator:
    name, count = "bend of explained variance", tried.possible(row)
    values = tried.k_values[:count]
    if tried.ev is None or count < 2:
        return Indicator(name, "sae.k", None, tried.how)
    curve = tried.ev[row, :count]
    noise = NOISE * tried.noise("explained_variance", float(curve.max())) * math.sqrt(2)
    if curve.max() - curve[0] <= max(noise, LEAST_GAIN):
        return Indicator(name, "sae.k", None, "it does not rise with K")
    gain = gains(curve[None], values, axis=1)[0]
    small = (gain < BEND * gain.max()) | (np.diff(curve) <= noise)
    steepest = int(gain.argmax())
    place = next((p for p in range(steepest, count - 1) if small[p]), count - 1)
    if place == count - 1:
        words = f"it still rises at the largest K tried, {values[-1]}"
        return Indicator(name, "sae.k", values[-1], words, open_above=True)
    words = f"past K {values[place]} a doubling gains less than half of the largest gain"
    return Indicator(name, "sae.k", values[place], words)


def _knee(curve: Curve, values: list[int], noise: float) -> int:
    """The place in a curve over ``values`` past which every doubling gains little."""
    gain = gains(curve[None], values, axis=1)[0]
    small = (gain < FRACTION * gain.max()) | (np.diff(curve) <= noise)
    return next(place for place in range(len(values)) if small[place:].all())


def _agreement(tried: Tried, row: int) -> Indicator:
    name, count = "agreement of seeds", tried.possible(row)
    agreement, how = tried.over("stability")
    if agreement is None:
        one_seed = all(trial.stability is None for trial in tried.rows)
        return Indicator(name, "sae.k", None, "one seed was trained" if one_seed else how)
    curve, values = agreement[row, :count], tried.k_values[:count]
    best = int(curve.argmax())
    chance, _ = tried.over("stability_chance")
    if chance is not None:
        by_chance = float(chance[row, best])
        if curve[best] - by_chance < LEAST_ABOVE_CHANCE * (1 - by_chance):
            words = f"at best {curve[best]:.3f}, hardly above chance ({by_chance:.3f})"
            return Indicator(name, "sae.k", None, words)
    floor = curve[best] - max(STABLE_FRACTION * curve[best], _noise_of_agreement(tried))
    place = first = best
    while place + 1 < count and curve[place + 1] >= floor:
        place += 1
    while first > 0 and curve[first - 1] >= floor:
        first -= 1
    if place == count - 1:
        words = f"it does not fall up to the largest K tried, {values[-1]}"
        return Indicator(name, "sae.k", values[-1], words, True, values[first])
    words = (
        f"a larger K than {values[place]} takes it from {curve[place]:.3f} to "
        f"{curve[place + 1]:.3f}, below {floor:.3f}"
    )
    return Indicator(name, "sae.k", values[place], words, low=values[first])


def _noise_of_agreement(tried: Tried) -> float:
    """Twice the standard deviation of the difference of two trials' agreement; 0 where it is not known.

    The mean difference of two halves is about 1.6 times the standard deviation of the whole.
    """
    found = [row.get("stability_halves") for row in tried.rows]
    known = [value for value in found if value is not None and not math.isnan(value)]
    return NOISE * math.sqrt(2) * median(known) / 1.6 if known else 0.0


def _least(tried: Tried, row: int, metric: str, name: str) -> Indicator:
    """The smallest K at which a metric cannot be told from its least value."""
    count = tried.possible(row)
    found, how = tried.over(metric)
    if found is None:
        return Indicator(name, "sae.k", None, how)
    curve, values = found[row, :count], tried.k_values[:count]
    noise = NOISE * tried.noise(metric, float(curve.min())) * math.sqrt(2)
    if curve.max() - curve.min() <= noise:
        return Indicator(name, "sae.k", None, "it is the same at every K, up to noise")
    place = int(np.flatnonzero(curve <= curve.min() + noise)[0])
    ends = [end for end in (0, count - 1) if curve[end] <= curve.min() + noise]
    if ends:
        at = " and ".join(str(values[end]) for end in ends)
        words = f"it is no lower between than at the end of the K tried ({at})"
        return Indicator(name, "sae.k", None, words)
    return Indicator(name, "sae.k", values[place], f"it is least at K {values[place]}")
