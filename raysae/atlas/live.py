"""The atlas on live data: every site is trained in the same pass of the model over the texts."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise

from raysae.activations import Site, Store
from raysae.activations.live import check_live_memory, live_memory
from raysae.atlas.worker import Sites, SiteSettings
from raysae.cluster.placement import Placement, beside_live
from raysae.cluster.reading import memory_there
from raysae.cluster.scan.opening import divide, serving
from raysae.config import Recipe
from raysae.console.board import console
from raysae.errors import UserError
from raysae.extraction.keeping import Keep, decide_keep
from raysae.extraction.live_rows import LiveSite, live_sites, passes_in_words
from raysae.extraction.live_scan import LiveData
from raysae.extraction.plan import ExtractionPlan
from raysae.training.memory import training_bytes


@dataclass(frozen=True)
class LivePass:
    """The groups of sites, each for one worker, and how its workers read them."""

    groups: list[Sites]
    placement: Placement
    rows: dict[Site, LiveSite] | None
    """None of stores whose rows are on disk: a worker reads them itself."""


@contextmanager
def live_pass(
    recipe: Recipe, store: Store, plan: ExtractionPlan, settings: SiteSettings, sites: list[Site],
    admitted: Placement, fresh: bool = False,
) -> Iterator[LivePass]:  # fmt: skip
    """The sites' live rows while the block runs: all sites share a pass, or as many as memory holds.

    ``fresh``: whether none was begun before, so that all begin with the first row.
    Raises UserError when not even one site fits.
    """
    trains, computing = beside_live(recipe.resources)
    placement = replace(trains, workers=min(trains.workers, admitted.workers))
    each = sites_each(store, settings, sites, placement.workers)
    groups = groups_of_passes(sites, placement.workers, each)
    each = max(map(len, groups))
    passes = -(-len(groups) // placement.workers)
    keep = _keep(store, plan, passes * settings.training.epochs)
    console.print(
        f"Live: {len(sites)} sites in {passes} pass{'es' * (passes > 1)} an epoch, {each} "
        f"sites in each of {min(placement.workers, len(groups))} workers; {keep}"
    )
    together = min(len(sites), placement.workers * each)
    divided = divide(store, sites, recipe.resources)
    epochs = min(settings.training.passes(store.entry(site).rows.train) for site in sites)
    data = LiveData(plan, tuple(sites), keep.keep, computing, epochs)
    seeds = len(settings.seeds)  # each reads a pass of its own, at the pace of the others
    readers, workers = together * seeds, placement.workers
    with serving(divided.memory, workers, each * seeds, None, live_readers=readers) as service:
        if fresh:
            service.begin.remote(data.scan(0, service))  # while the workers start
        yield LivePass(groups, placement, live_sites(data, divided, service))
        console.print(passes_in_words(store, service))


def _keep(store: Store, plan: ExtractionPlan, passes: int) -> Keep:
    return decide_keep(store, plan.source.keep if passes > 1 else "no")


def sites_each(store: Store, settings: SiteSettings, sites: list[Site], workers: int) -> int:
    """How many sites a worker trains at the same time: all of its part, or as many as fit in memory.

    Raises UserError when not even one fits.
    """
    rows = max(store.entry(site).rows.train for site in sites)
    shuffle = settings.training.shuffle_rows
    windows = live_memory(shuffle, rows, store.row_bytes, 1)
    training = training_bytes(store.d_in, settings.sae.d_sae, settings.training)
    one = len(settings.seeds) * (windows + training)
    there = memory_there() / workers
    if windows > there:
        check_live_memory(windows, there, shuffle, 1)
    if one > there:
        seeds = len(settings.seeds)
        saes = "an SAE" if seeds == 1 else f"a site with {seeds} SAEs"
        raise UserError(
            f"source.live: {saes} of d_sae {settings.sae.d_sae:,} takes {one / 1e9:.2f} GB, "
            f"and a worker may take {there / 1e9:.2f} GB; lower training.shuffle_rows, "
            "atlas.seeds_per_site or resources.max_concurrent"
        )
    return min(int(there / one), -(-len(sites) // workers))


def groups_of_passes(sites: list[Site], workers: int, each: int) -> list[Sites]:
    """The sites in groups of at most ``each``: those of a pass are as even as can be."""
    groups: list[Sites] = []
    for start in range(0, len(sites), workers * each):
        part = sites[start : start + workers * each]
        count = min(workers, len(part))
        bounds = [number * len(part) // count for number in range(count + 1)]
        groups += [tuple(part[a:b]) for a, b in pairwise(bounds)]
    return groups
