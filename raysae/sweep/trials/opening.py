"""Opening the sites for the trials: shared in memory, scanned once for all, streamed by each, or live."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import count
from typing import Any

from raysae.activations import Site, Store
from raysae.activations.health import SiteHealth
from raysae.activations.live import check_live_memory, live_memory
from raysae.cluster.placement import Placement, beside_live, beside_scans, place_streaming
from raysae.cluster.reading import (
    OpenSite,
    Reading,
    check_rows,
    check_sites,
    check_windows,
    choose_reading,
    memory_there,
    open_site,
)
from raysae.cluster.scan.opening import (
    divide,
    plan_scans,
    scanned_sites,
    scans_in_words,
    serving,
)
from raysae.config import Recipe
from raysae.console.board import console, emit
from raysae.extraction.keeping import decide_keep
from raysae.extraction.live_rows import KeptSite, live_sites, passes_in_words
from raysae.extraction.live_scan import LiveData
from raysae.extraction.plan import ExtractionPlan
from raysae.records.products import searched_keys
from raysae.training.statistics import health_of

PATIENCE = 30.0
"""Seconds that trials wait for a slower one, where no wave makes all of them wait at its end anyway."""


@dataclass(frozen=True)
class Demand:
    """What the trials read, and how many there are."""

    recipe: Recipe
    store: Store
    sites: list[Site]
    placement: Placement
    """How many trials memory admits, and what each reserves."""
    lag: int
    """The proposer's."""
    trials: int
    live: ExtractionPlan | None = None
    """How live rows are computed; None of other stores."""
    fresh: bool = False
    """Whether no trial was begun before, so that all begin with the first row."""

    def together(self, placement: Placement) -> int:
        """Gangs that are trained at the same time."""
        return min(at_once(self.recipe, placement, self.lag), self.gangs)

    @property
    def gangs(self) -> int:
        """Gangs of trials in all."""
        return -(-self.trials // self.recipe.resources.gang)

    @property
    def trainings(self) -> int:
        """Trainings of one trial: at each site with each seed."""
        return len(self.sites) * self.recipe.sweep.seeds_per_trial

    @property
    def epochs(self) -> int:
        """Epochs that every training has, at least."""
        if searched_keys(self.recipe) & {"training.epochs", "training.tokens"}:
            return 1
        rows = (self.store.entry(site).rows.train for site in self.sites)
        return min(map(self.recipe.training.passes, rows))

    @property
    def rows(self) -> int:
        """Training rows of the largest site."""
        return max(self.store.entry(site).rows.train for site in self.sites)


@dataclass(frozen=True)
class TrialRows:
    """The sites' rows for the trials, and how many trials may read them at the same time."""

    sites: Mapping[Site, OpenSite]
    placement: Placement
    wave: int | None = None
    """Gangs that start together, since they read one scan; None: each starts when it can."""
    expect: Callable[[int], None] = lambda gangs: None
    """Called with the number of gangs at work, when it changes."""


def at_once(recipe: Recipe, placement: Placement, lag: int) -> int:
    """How many gangs may be trained at the same time, given the proposer's ``lag``."""
    return min(placement.workers, max(lag // recipe.resources.gang, 1))


@contextmanager
def opened(demand: Demand) -> Iterator[TrialRows]:
    """The rows of the sites, checked and opened, while the block runs.

    Raises UserError when a shard was altered, a row is not finite, or what has to be in memory does not
    fit there.
    """
    store, sites, resources = demand.store, demand.sites, demand.recipe.resources
    if store.computes_rows:
        with _live(demand) as rows:
            yield rows
        return
    reading = choose_reading(store, sites, resources, demand.together(demand.placement))
    if reading.how == "scan":
        with _scanned(demand, reading) as rows:
            yield rows
        return
    placement = demand.placement
    if reading.how == "streaming":
        placement = _at_most(placement, place_streaming(resources))
        streams = demand.together(placement) * demand.trainings
        check_windows(store, demand.recipe.training.shuffle_rows, demand.rows, streams)
    console.print(f"Reading: {reading}; trials: {placement}")
    found = _in_order(store, {site: open_site(reading, store, site) for site in sites})
    _print_health(found)
    yield TrialRows(found, placement)


def _in_order(store: Store, sites: Mapping[Site, OpenSite]) -> Mapping[Site, OpenSite]:
    """The sites; those of a live store that was kept are read in the order in which they came live."""
    if store.live is None:
        return sites
    return {site: KeptSite(str(store.opened_by), site, inner) for site, inner in sites.items()}


def _at_most(admitted: Placement, reserving: Placement) -> Placement:
    """What trials reserve when they read so, and no more of them than memory admits."""
    return replace(reserving, workers=min(reserving.workers, admitted.workers))


@contextmanager
def _scanned(demand: Demand, reading: Reading) -> Iterator[TrialRows]:
    recipe, store, sites = demand.recipe, demand.store, demand.sites
    placement = _at_most(demand.placement, beside_scans(recipe.resources))
    plan = plan_scans(store, sites, recipe)
    console.print(f"Reading: {reading}; trials: {placement}")
    size = sum(store.entry(site).rows.train for site in sites) * store.row_bytes
    _print_waves(demand, placement, "scan", f"{size * recipe.sweep.seeds_per_trial / 1e9:.2f} GB")
    for site in sites:
        check_rows(store, site)
    workers = demand.together(placement)
    with serving(plan.memory, workers, demand.trainings, _patience(recipe)) as service:
        found = _in_order(
            store, scanned_sites(store, sites, plan, service, not recipe.sweep.reproducible)
        )
        _print_health(found)
        yield TrialRows(found, placement, _wave(demand, placement), _expecting(service))
        console.print(scans_in_words(service))


@contextmanager
def _live(demand: Demand) -> Iterator[TrialRows]:
    recipe, store, sites = demand.recipe, demand.store, demand.sites
    assert demand.live is not None and store.live is not None
    trials, computing = beside_live(recipe.resources)
    placement = _at_most(demand.placement, trials)
    workers, each = demand.together(placement), demand.trainings
    shuffle = recipe.training.shuffle_rows
    windows = live_memory(shuffle, demand.rows, store.row_bytes, each * workers)
    check_live_memory(windows, memory_there(), shuffle, each * workers)
    again = demand.gangs > workers or recipe.training.epochs > 1 or recipe.atlas.enabled
    keep = decide_keep(store, demand.live.source.keep if again else "no")
    console.print(f"Reading: live, computed by {computing}; trials: {placement}")
    console.print(f"Live: {keep if again else 'this is the only pass, so its rows are not kept'}")
    _print_waves(demand, placement, "pass", f"{store.live.tokens:,} tokens")
    check_sites(store, sites)
    plan = divide(store, sites, recipe.resources)
    data = LiveData(demand.live, tuple(sites), keep.keep, computing, demand.epochs)
    patience, readers = _patience(recipe), workers * each
    with serving(plan.memory, workers, each, patience, live_readers=readers) as service:
        found = live_sites(data, plan, service)
        if demand.fresh:
            service.begin.remote(data.scan(0, service))  # while the trials' workers start
        _print_health(found)
        wave = _wave(demand, placement)
        yield TrialRows(found, placement, wave, _expecting(service, each))
        console.print(passes_in_words(store, service))


def _wave(demand: Demand, placement: Placement) -> int | None:
    return demand.together(placement) if demand.recipe.sweep.reproducible else None


def _patience(recipe: Recipe) -> float | None:
    return None if recipe.sweep.reproducible else PATIENCE


def _expecting(service: Any, each: int = 1) -> Callable[[int], None]:
    """Tells the service how many readers of one scan there are: ``each`` in each gang at work."""
    turns = count(1)
    return lambda gangs: service.expect.remote(max(gangs, 1) * each, each, next(turns))


def _print_waves(demand: Demand, placement: Placement, what: str, size: str) -> None:
    """Print what the waves are, and what they save and cost."""
    if not demand.recipe.sweep.reproducible:
        return
    together, gangs = demand.together(placement), demand.gangs
    waves = -(-gangs // together)
    larger = ""
    if together < min(placement.workers, gangs) and demand.lag < demand.trials:
        larger = "; a larger sweep.proposal_lag allows larger waves"
    many = ("es" if what == "pass" else "s") * (waves != 1)
    console.print(
        f"Waves: {together} at a time share one {what} of {size} an epoch, so {gangs} trainings cost "
        f"{waves} {what}{many}; a wave begins when the slowest of the one before has ended "
        f"(sweep.reproducible=false does not wait){larger}"
    )


def _print_health(sites: Mapping[Site, OpenSite]) -> None:
    for site, rows in sites.items():
        health = health_of(rows.rows("train"))
        emit("health", **SiteHealth(site, health).record())
        console.print(f"Inputs at {site}: {health}")
