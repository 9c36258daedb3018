"""Opening the sites for the trials: shared in memory, scanned once for all, or streamed by each."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace

from raysae.activations import Site, Store
from raysae.cluster.placement import Placement, beside_scans, place_streaming
from raysae.cluster.reading import (
    OpenSite,
    Reading,
    check_rows,
    check_windows,
    choose_reading,
    open_site,
)
from raysae.cluster.scan.opening import plan_scans, scanned_sites, serving
from raysae.config import Recipe
from raysae.console.board import console
from raysae.training.statistics import health_of

PATIENCE = 30.0
"""Seconds that trials wait for a slower one, where no wave makes all of them wait at its end anyway."""


@dataclass(frozen=True)
class TrialRows:
    """The sites' rows for the trials, and how many trials may read them at the same time."""

    sites: Mapping[Site, OpenSite]
    placement: Placement
    wave: int | None = None
    """Gangs that start together, since they read one scan; None: each starts when it can."""
    expect: Callable[[int], None] = lambda readers: None
    """Called with the number of gangs at work, when it changes."""


def at_once(recipe: Recipe, placement: Placement, lag: int) -> int:
    """How many gangs may be trained at the same time, given the proposer's ``lag``."""
    return min(placement.workers, max(lag // recipe.resources.gang, 1))


def reading_of(
    recipe: Recipe, store: Store, sites: list[Site], placement: Placement, lag: int
) -> Reading:
    """How the trials will read their rows; see ``choose_reading``."""
    together = at_once(recipe, placement, lag)
    return choose_reading(store, sites, recipe.resources, together)


@contextmanager
def opened(
    recipe: Recipe, store: Store, sites: list[Site], placement: Placement, lag: int, trials: int
) -> Iterator[TrialRows]:
    """The rows of ``sites``, checked and opened, while the block runs.

    Raises UserError when a shard was altered, a row is not finite, or what has to be in memory does not
    fit there.
    """
    reading = reading_of(recipe, store, sites, placement, lag)
    if reading.how == "scan":
        beside = _at_most(placement, beside_scans(recipe.resources))
        with _scanned(recipe, store, sites, reading, beside, lag, trials) as rows:
            yield rows
        return
    if reading.how == "streaming":
        placement = _at_most(placement, place_streaming(recipe.resources))
        _check_windows(recipe, store, sites, at_once(recipe, placement, lag))
    console.print(f"Reading: {reading}; trials: {placement}")
    found = {site: open_site(reading, store, site) for site in sites}
    _print_health(found)
    yield TrialRows(found, placement)


def _at_most(admitted: Placement, reserving: Placement) -> Placement:
    """What trials reserve when they read so, and no more of them than memory admits."""
    return replace(reserving, workers=min(reserving.workers, admitted.workers))


@contextmanager
def _scanned(
    recipe: Recipe, store: Store, sites: list[Site], reading: Reading, placement: Placement, lag: int,
    trials: int,
) -> Iterator[TrialRows]:  # fmt: skip
    resources, sweep = recipe.resources, recipe.sweep
    together = at_once(recipe, placement, lag)
    plan = plan_scans(store, sites, recipe)
    console.print(f"Reading: {reading}; trials: {placement}")
    gangs = -(-trials // resources.gang)
    if sweep.reproducible:
        console.print(_waves(store, sites, recipe, min(together, gangs), gangs))
    patience = None if sweep.reproducible else PATIENCE
    for site in sites:
        check_rows(store, site)
    with serving(plan.memory, together, len(sites) * sweep.seeds_per_trial, patience) as service:
        found = scanned_sites(store, sites, plan, service)
        _print_health(found)
        wave = together if sweep.reproducible else None
        yield TrialRows(
            found, placement, wave, lambda readers: service.expect.remote(max(readers, 1))
        )


def _waves(store: Store, sites: list[Site], recipe: Recipe, together: int, gangs: int) -> str:
    """What the waves are, and what they save and cost, in words."""
    seeds, epochs = recipe.sweep.seeds_per_trial, recipe.training.epochs
    one = sum(store.entry(site).rows.train for site in sites) * store.row_bytes * seeds * epochs
    waves = -(-gangs // together)
    raised = ""
    if together < recipe.resources.gang * gangs and recipe.sweep.sampler in ("tpe", "nsga2"):
        raised = "; a larger sweep.proposal_lag allows larger waves"
    return (
        f"Waves: {together} trial{'s' * (together > 1)} at a time read one scan ({one / 1e9:.2f} GB), so "
        f"{gangs} cost {waves} scans instead of {gangs}; each wave begins when the slowest trial of the "
        f"one before has ended (sweep.reproducible=false does not wait){raised}"
    )


def _check_windows(recipe: Recipe, store: Store, sites: list[Site], workers: int) -> None:
    rows = max(store.entry(site).rows.train for site in sites)
    streams = workers * len(sites) * recipe.sweep.seeds_per_trial
    check_windows(store, recipe.training.shuffle_rows, rows, streams)


def _print_health(sites: Mapping[Site, OpenSite]) -> None:
    for site, rows in sites.items():
        console.print(f"Inputs at {site}: {health_of(rows.rows('train'))}")
