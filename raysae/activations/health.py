"""What is unusual about a store's rows, site by site, from a bounded sample of them.

Shapes: N rows, D d_in.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor

from raysae.activations.schema import empty_rows
from raysae.activations.store import TRAINING_SPLITS, Store
from raysae.console.output import Table
from raysae.errors import UserError, in_one_line
from raysae.sites import Site
from raysae.training.finite import NonFiniteRowsError
from raysae.training.health import HUGE, KINDS, LARGE, Finding, Health
from raysae.training.rows import surveyed
from raysae.training.statistics import HEALTH_ROWS, health_of_batches

MOST_SITES, LEAST_SITES = 64, 4
"""Sites that are looked at, unless all are asked for."""
MOST_VALUES = 2**28
"""Values that are looked at, unless all sites are asked for: it bounds the time, to some seconds."""
LISTED = 24
"""Sites that a table lists, the worst first; of the others the range is told."""
WORDS = {
    "equal": "equal rows", "mean": "large means", "sinks": "sinks", "large": "large norms",
    "constant": "constant dimensions", "repeated": "repeated rows",
}  # fmt: skip
"""The kinds of findings in words."""
HEADS = (
    "site", "mean / spread", "sinks", f"norm > {LARGE:g}x", f"norm > {HUGE:g}x", "constant",
    "repeated", "rows",
)  # fmt: skip


@dataclass(frozen=True)
class SiteHealth:
    """The health of a site's training rows, or why it is not known."""

    site: Site
    health: Health | None
    problem: str = ""

    @property
    def findings(self) -> list[Finding]:
        """What is unusual; empty when all is usual or nothing is known."""
        return self.health.findings if self.health else []

    @property
    def concern(self) -> tuple[Any, ...]:
        """A key that sorts sites: the larger, the more a person should look at the site."""
        if self.health is None:
            return (True,)
        known, one = self.health, math.inf if math.isnan(self.health.mean_ratio) else 0.0
        large = known.over_100, known.over_10, known.sink_fraction
        ratio = one or known.mean_ratio
        return False, len(self.findings), *large, known.repeated, known.constant, ratio

    @property
    def cells(self) -> list[str]:
        """A table's row; see ``HEADS``."""
        if self.health is None:
            return [self.site.folder, *[""] * (len(HEADS) - 1)]
        known = self.health
        shares = known.sink_fraction, known.over_10, known.over_100
        return [
            self.site.folder, _ratio(known.mean_ratio), *map(_share, shares),
            f"{known.constant:,}", _share(known.repeated), f"{known.rows:,}",
        ]  # fmt: skip

    def record(self) -> dict[str, Any]:
        """All figures by name, for a line of JSON; what is not a number is None."""
        values = asdict(self.health).items() if self.health else ()
        plain = {key: None if value != value else value for key, value in values}
        return {"site": self.site.folder, **plain, "problem": self.problem or None}


@dataclass(frozen=True)
class StoreHealth:
    """The health of some of a store's sites."""

    sites: list[SiteHealth]
    """Those that were looked at, in order."""
    others: int = 0
    """Sites that were not looked at."""
    read: int = 0
    """Bytes of activations that were read."""
    most_listed: int = LISTED
    """Sites that a table lists, at most."""
    worst: list[SiteHealth] = field(init=False)
    """The sites, those to look at first before the others."""

    def __post_init__(self) -> None:
        ordered = sorted(self.sites, key=lambda one: one.concern, reverse=True)
        object.__setattr__(self, "worst", ordered)

    @property
    def listed(self) -> list[SiteHealth]:
        """The sites that a table lists, in the store's order: all, or the worst of many."""
        return sorted(self.worst[: self.most_listed], key=lambda one: one.site)

    @property
    def how(self) -> str:
        """What was looked at, and what it cost to read."""
        count, rows = len(self.sites), max((one.rows for one in self._known), default=0)
        of = f" of {count + self.others}" if self.others else ""
        return (
            f"from up to {rows:,} rows at each of {count}{of} site{'s' * (count != 1)} "
            f"({self.read / 1e6:,.0f} MB read)"
        )

    @property
    def notes(self) -> list[str]:
        """What a person should know, a line for each kind of thing; what is usual last."""
        found = [*self._problems(), *self._kinds()]
        if rest := self._unlisted():
            found.append(rest)
        usual = [one.mean_ratio for one in self._known if not one.findings]
        if usual:
            where = f"{len(usual)} {'other ' * bool(found)}site{'s' * (len(usual) > 1)}"
            ratios = " to ".join(
                dict.fromkeys(f"{ratio:.2f}" for ratio in (min(usual), max(usual)))
            )
            found.append(f"{where}: nothing unusual; the mean's norm is {ratios} times the spread")
        return found

    @property
    def advice(self) -> list[str]:
        """What to do about what is unusual, a line for each kind of thing."""
        known = {finding.kind: finding.advice for one in self.sites for finding in one.findings}
        return [f"{WORDS[kind]}: {known[kind]}" for kind in KINDS if kind in known]

    @property
    def _known(self) -> list[Health]:
        return [one.health for one in self.sites if one.health is not None]

    def _problems(self) -> Iterator[str]:
        broken = [one for one in self.sites if one.health is None]
        if broken:
            yield _at(len(broken), broken[0], "first") + f": {broken[0].problem}"

    def _kinds(self) -> Iterator[str]:
        """For each kind of finding, at how many sites it is, and its note at the worst of them."""
        kinds: dict[str, list[tuple[Finding, SiteHealth]]] = {}
        for one in self.sites:
            for finding in one.findings:
                kinds.setdefault(finding.kind, []).append((finding, one))
        for _, found in sorted(kinds.items(), key=lambda kind: KINDS.index(kind[0])):
            finding, worst = max(found, key=lambda pair: pair[0].size)
            yield _at(len(found), worst, "most") + f": {finding.note}"

    def _unlisted(self) -> str:
        rest = self.worst[self.most_listed :]
        if not rest:
            return ""
        return f"{len(rest)} sites that are no worse than those listed are left out of the table"


def health_of_store(
    store: Store, sites: Sequence[Site] | None = None, *, every: bool = False
) -> StoreHealth:
    """The health of the training rows at ``sites``, by default at all of the store's; of the validation
    rows where there are no others.

    Of more sites than can be looked at in some seconds it takes some, spread evenly, unless ``every``
    one is asked for. Every site's rows are always the same. Nothing is raised for a site whose rows
    cannot be read.
    """
    wanted = list(store.sites if sites is None else sites)
    taken = wanted if every else _some(wanted, store.d_in)
    found = [health_of_site(store, site) for site in taken]
    listed = len(wanted) if every else LISTED
    size = sum(one.health.rows for one in found if one.health) * store.row_bytes
    return StoreHealth(found, len(wanted) - len(taken), size, listed)


_known: WeakKeyDictionary[Store, dict[Site, SiteHealth]] = WeakKeyDictionary()
"""The health of sites without a problem, of stores that are open."""


def health_of_site(store: Store, site: Site) -> SiteHealth:
    """The health of the site's training rows: the figures that a run prints for it.

    An open store's rows stay as they are, so they are looked at once.
    """
    known = _known.setdefault(store, {})
    if site in known:
        return known[site]
    try:
        batches = list(_surveyed(store, site))
        if not batches:
            return SiteHealth(site, None, "no rows to train on")
        known[site] = SiteHealth(site, health_of_batches(batches))
        return known[site]
    except (UserError, NonFiniteRowsError, OSError) as error:
        return SiteHealth(site, None, in_one_line(error))


def health_table(found: StoreHealth) -> Table:
    """A table with one line for each listed site."""
    table = Table(box=None, padding=(0, 2, 0, 0))
    for head in HEADS:
        justify = "left" if head == "site" else "right"
        table.add_column(head.replace(" ", "\n", 1), justify=justify, no_wrap=True)
    for one in found.listed:
        table.add_row(*one.cells)
    return table


def _some(sites: list[Site], d_in: int) -> list[Site]:
    most = min(max(MOST_VALUES // (HEALTH_ROWS * d_in), LEAST_SITES), MOST_SITES)
    if len(sites) <= most:
        return sites
    last = len(sites) - 1
    return [sites[number * last // (most - 1)] for number in range(most)]


def _surveyed(store: Store, site: Site) -> Iterator[tuple[int, Tensor]]:
    """The rows that ``IndexedRows.survey`` gives; only the shards that have them are opened."""
    shards = store.entry(site).shards
    for split in TRAINING_SPLITS:
        rows = sum(getattr(shard.rows, split) for shard in shards)
        for start, stop in surveyed(rows, HEALTH_ROWS):
            yield start, _read(store, site, split, start, stop)
        if rows:
            return


def _read(store: Store, site: Site, split: str, start: int, stop: int) -> Tensor:
    """The split's rows from ``start`` to ``stop`` in storage order, ``[stop - start, d_in]``."""
    rows_ND = empty_rows(stop - start, store.d_in, store.manifest.dtype)
    for segment, first, count, at in store.parts(site, split, start, stop):
        store.read_into(rows_ND[at : at + count], segment, first)
    return rows_ND


def _at(count: int, one: SiteHealth, which: str) -> str:
    return f"at {one.site}" if count == 1 else f"at {count} sites ({which} at {one.site})"


def _ratio(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.2f}"


def _share(value: float) -> str:
    return f"{value:.2%}" if value else "0"
