"""What an atlas's figures say about positions and layers, with their spread: computed, never written.

A group's mean is over its sites. Sites of one layer, or of one position, resemble each other, so an
interval takes as its sample what is compared: the means of the positions for odd and even ones, the means
of the layers for early and late ones (Welch's t: Welch 1947, Biometrika 34, 28-35), and for two single
positions their differences at each layer (paired t). Every interval is a 95% one by itself; they are not
corrected for their number.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev, variance

from raysae.metrics import Metric
from raysae.report.atlas_rows import (
    PARTS,
    Row,
    atlas_metrics,
    by_hookpoint,
    has_parity,
    layers_of,
    name_of,
    number,
    parity,
    positions_of,
    thirds,
    value,
)

CONFIDENCE = 0.95
LISTED = 3
"""Best and worst sites that are named, each."""
MOST_BRIEF = 8
"""Sentences on the console, at most."""
POINTS = " points"
Interval = tuple[float, float]


@dataclass(frozen=True)
class Group:
    """The sites on one side of a comparison."""

    name: str
    """Such as ``even positions``."""
    values: tuple[float, ...]
    """The metric at each site."""
    means: Mapping[object, float]
    """Its mean for each position or layer, whichever is compared."""
    sizes: frozenset[int]
    """How many sites a position or layer has in it."""

    @property
    def n(self) -> int:
        """The number of sites."""
        return len(self.values)

    @property
    def mean(self) -> float:
        """The mean over positions or layers of their means; without holes that of the sites."""
        return fmean(self.means.values())

    @property
    def sd(self) -> float:
        """The standard deviation over the sites; NaN for one."""
        return stdev(self.values) if self.n > 1 else math.nan

    def text(self, metric: Metric) -> str:
        """Such as ``even positions (0.9410 ± 0.0300, n 36)``."""
        return f"{self.name} ({self.spread(metric)}, n {self.n:,})"

    def spread(self, metric: Metric) -> str:
        """Mean and standard deviation, such as ``0.9410 ± 0.0300``; of one site the value alone."""
        mean = metric.text(self.mean)
        return f"{mean} ± {metric.text(self.sd)}" if self.n > 1 else mean


@dataclass(frozen=True)
class Claim:
    """A comparison of two groups of sites in one metric."""

    hookpoint: str | None
    metric: Metric
    kind: str
    """``parity``, ``layers`` or ``ends``."""
    first: Group
    second: Group
    interval: Interval | None
    """95% confidence interval of the difference; None when there is too little to tell."""
    basis: str
    """What the interval rests on, such as ``Welch's t over 3 and 3 positions``."""

    @property
    def difference(self) -> float:
        """The first group's mean minus the second's."""
        return self.first.mean - self.second.mean

    @property
    def difference_text(self) -> str:
        """The difference as text."""
        return points(self.metric, self.difference)

    @property
    def told(self) -> bool:
        """Whether it is told in a sentence: not one with the middle layers, nor one without interval."""
        middle = any(group.name.startswith("middle") for group in (self.first, self.second))
        return self.interval is not None and not middle

    @property
    def clear(self) -> bool:
        """Whether the interval leaves out 0."""
        return self.interval is not None and (self.interval[0] > 0 or self.interval[1] < 0)

    @property
    def verdict(self) -> str:
        """``higher``, ``lower``, ``no clear difference`` or ``too few to tell``."""
        if self.interval is None:
            return "too few to tell"
        if not self.clear:
            return "no clear difference"
        return "higher" if self.difference > 0 else "lower"

    @property
    def interval_text(self) -> str:
        """The interval as text, such as ``−0.0020 to 0.0400``; empty without one."""
        if self.interval is None:
            return ""
        low, high = (points(self.metric, end) for end in self.interval)
        return f"{low.removesuffix(POINTS)} to {high}"

    @property
    def sentence(self) -> str:
        """The comparison in words, with its figures."""
        first, second = self.first.text(self.metric), self.second.text(self.metric)
        start = _subject(self.hookpoint, self.metric)
        difference = f"difference {self.difference_text}"
        if self.interval is None:
            return f"{start}: {first} and {second}: {difference}, {self.basis}."
        tail = f"{difference}, 95% CI {self.interval_text} ({self.basis})"
        if self.clear:
            return f"{start} is {self.verdict} at {first} than at {second}: {tail}."
        return f"{start}: no clear difference between {first} and {second}: {tail}."


@dataclass(frozen=True)
class Extremes:
    """The best and the worst sites in one metric."""

    hookpoint: str | None
    metric: Metric
    best: Sequence[Row]
    worst: Sequence[Row]

    @property
    def sentence(self) -> str:
        """The sites in words."""
        start = _subject(self.hookpoint, self.metric)
        high = self.metric.direction != "minimize"
        best, worst = ("highest", "lowest") if high else ("lowest", "highest")
        return (
            f"{start}: best ({best}) at {self.text(self.best)}; worst ({worst}) at "
            f"{self.text(self.worst)}."
        )

    def text(self, rows: Sequence[Row]) -> str:
        """Such as ``layer 3 position 5 (0.9900)``, several in a row."""
        name = self.metric.name
        return ", ".join(
            f"layer {row['layer']} position {row['position']} ({self.metric.text(row[name])})"
            for row in rows
        )


def in_brief(rows: Sequence[Row]) -> list[str]:
    """A few sentences on the first metric, such as explained variance: comparisons with an interval, and
    the best and worst sites."""
    found = []
    for there in by_hookpoint(rows).values():
        lead = atlas_metrics(there)[:1]
        told = [claim for claim in claims_of(there) if claim.metric in lead and claim.told]
        found += [claim.sentence for claim in told]
        found += [one.sentence for one in extremes_of(there) if one.metric in lead]
    return found[:MOST_BRIEF]


def claims_of(rows: Sequence[Row]) -> list[Claim]:
    """All comparisons that the atlas's rows allow, by hookpoint and metric.

    Odd against even positions where these are numbers counted from one end, and there are two of each;
    early, middle and late thirds of three layers or more; the first against the last position. A metric
    that is the same at all sites, or known at one site alone, is left out.
    """
    return [
        claim
        for hookpoint, metric, there in _varying(rows)
        for claim in (
            *_parity(hookpoint, metric, there),
            *_layers(hookpoint, metric, there),
            *_ends(hookpoint, metric, there),
        )
    ]


def extremes_of(rows: Sequence[Row]) -> list[Extremes]:
    """The best and the worst sites of the atlas, by hookpoint and metric."""
    found = []
    for hookpoint, metric, there in _varying(rows):
        known = [row for row in there if not math.isnan(value(row, metric))]
        ranked = sorted(
            known,
            key=lambda row: value(row, metric),
            reverse=metric.direction != "minimize",
        )
        count = min(LISTED, len(ranked) // 2)
        found.append(Extremes(hookpoint, metric, ranked[:count], ranked[: -count - 1 : -1]))
    return found


def _subject(hookpoint: str | None, metric: Metric) -> str:
    """How a sentence begins: ``Explained variance``, or ``At mlp_out, explained variance``."""
    name = name_of(metric)
    return f"At {hookpoint}, {name}" if hookpoint is not None else f"{name[:1].upper()}{name[1:]}"


def points(metric: Metric, difference: float) -> str:
    """A difference as text, with a real minus; that of two shares in percentage points."""
    text = metric.text(abs(difference))
    sign = "\N{MINUS SIGN}" if difference < 0 and text.strip("0.%") else ""
    return sign + (f"{text[:-1]}{POINTS}" if text.endswith("%") else text)


def _varying(rows: Sequence[Row]) -> list[tuple[str | None, Metric, list[Row]]]:
    """The rows of each hookpoint with each metric that is not the same at all sites that have it."""
    found = []
    for hookpoint, there in by_hookpoint(rows).items():
        for metric in atlas_metrics(there):
            known = [one for row in there if not math.isnan(one := value(row, metric))]
            if len({metric.text(one) for one in known}) > 1:
                found.append((hookpoint, metric, there))
    return found


def _parity(hookpoint: str | None, metric: Metric, rows: Sequence[Row]) -> list[Claim]:
    positions = [one for one in positions_of(rows) if number(one) is not None]
    if not has_parity(positions):
        return []
    sides = {name: [one for one in positions if parity(one) == name] for name in ("even", "odd")}
    if min(map(len, sides.values())) < 2:
        return []  # two single positions are compared as the first and the last
    even, odd = (
        _group(f"{name} positions", metric, rows, _position, set(sides[name])) for name in sides
    )
    if not (even.means and odd.means):
        return []
    return [_welch(hookpoint, metric, "parity", even, odd, "positions")]


def _layers(hookpoint: str | None, metric: Metric, rows: Sequence[Row]) -> list[Claim]:
    part_of = thirds(layers_of(rows))
    if not part_of:
        return []
    groups = {}
    for part in PARTS:
        layers = [layer for layer in part_of if part_of[layer] == part]
        name = f"{part} layers {layers[0]}–{layers[-1]}" if len(layers) > 1 else (
            f"{part} layer {layers[0]}"
        )  # fmt: skip
        groups[part] = _group(name, metric, rows, _layer, set(layers))
    pairs = (("early", "late"), ("early", "middle"), ("middle", "late"))
    return [
        _welch(hookpoint, metric, "layers", groups[one], groups[other], "layers")
        for one, other in pairs
        if groups[one].means and groups[other].means
    ]


def _ends(hookpoint: str | None, metric: Metric, rows: Sequence[Row]) -> list[Claim]:
    known = [row for row in rows if not math.isnan(value(row, metric))]
    positions = [one for one in positions_of(known) if number(one) is not None]
    if len(positions) < 2:
        return []
    at = {
        one: {row["layer"] for row in known if _position(row) == one}
        for one in (positions[0], positions[-1])
    }
    shared = set.intersection(*at.values())
    if not shared:
        return []
    groups = [
        _group(
            f"the {which} position ({one})", metric,
            [row for row in rows if row["layer"] in shared and _position(row) == one], _layer, shared,
        )
        for which, one in zip(("first", "last"), at, strict=True)
    ]  # fmt: skip
    return [_paired(hookpoint, metric, *groups)]


def _position(row: Row) -> object:
    return str(row["position"])


def _layer(row: Row) -> object:
    return row["layer"]


def _group(
    name: str, metric: Metric, rows: Sequence[Row], key: Callable[[Row], object], members: set
) -> Group:
    """The group of the rows whose ``key`` is among ``members``."""
    found: dict[object, list[float]] = {}
    for row in rows:
        if key(row) in members and not math.isnan(value(row, metric)):
            found.setdefault(key(row), []).append(value(row, metric))
    values = tuple(one for those in found.values() for one in those)
    means = {one: fmean(those) for one, those in found.items()}
    return Group(name, values, means, frozenset(map(len, found.values())))


def _welch(
    hookpoint: str | None, metric: Metric, kind: str, first: Group, second: Group, unit: str
) -> Claim:
    """The comparison of two groups of positions or layers."""
    counts = len(first.means), len(second.means)
    if min(counts) < 2:
        basis = f"no interval, since a side has one {unit[:-1]} alone"
        return Claim(hookpoint, metric, kind, first, second, None, basis)
    interval = welch_interval(list(first.means.values()), list(second.means.values()))
    holes = ", not all with the same number of sites" if len(first.sizes | second.sizes) > 1 else ""
    basis = f"Welch's t over {counts[0]} and {counts[1]} {unit}{holes}"
    return Claim(hookpoint, metric, kind, first, second, interval, basis)


def _paired(hookpoint: str | None, metric: Metric, first: Group, second: Group) -> Claim:
    """The comparison of two positions at the same layers."""
    differences = [first.means[layer] - second.means[layer] for layer in first.means]
    if len(differences) < 2:
        basis = "no interval, since there is one layer alone"
        return Claim(hookpoint, metric, "ends", first, second, None, basis)
    agreeing = sum(one > 0 for one in differences)
    agreeing = max(agreeing, sum(one < 0 for one in differences))
    basis = f"paired t over {len(differences)} layers, {agreeing} of them with the same sign"
    interval = paired_interval(differences)
    return Claim(hookpoint, metric, "ends", first, second, interval, basis)


def welch_interval(first: Sequence[float], second: Sequence[float]) -> Interval:
    """The 95% confidence interval of the difference of two means of unequal variances, by Welch's t.

    Each sample has two values or more. The degrees of freedom are Welch's and Satterthwaite's.
    """
    parts = [variance(one) / len(one) for one in (first, second)]
    freedom = [part**2 / (len(one) - 1) for part, one in zip(parts, (first, second), strict=True)]
    total, below = sum(parts), sum(freedom)
    return _around(fmean(first) - fmean(second), total, total**2 / below if below else math.inf)


def paired_interval(differences: Sequence[float]) -> Interval:
    """The 95% confidence interval of the mean of two differences or more, by Student's t."""
    count = len(differences)
    return _around(fmean(differences), variance(differences) / count, count - 1)


def _around(middle: float, squared_error: float, freedom: float) -> Interval:
    from scipy.special import stdtrit  # a third of a second, which only a finished atlas needs

    reach = 0.0
    if squared_error > 0:
        reach = float(stdtrit(freedom, (1 + CONFIDENCE) / 2)) * math.sqrt(squared_error)
    return middle - reach, middle + reach
