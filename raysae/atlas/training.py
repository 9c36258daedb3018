"""Training the atlas: its sites are items of the pool, and each is committed on its own."""

from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace

from raysae.activations import Site, Store
from raysae.activations.health import LISTED, StoreHealth, health_of_site
from raysae.atlas.data import nothing_to_train
from raysae.atlas.live import LivePass, live_pass
from raysae.atlas.worker import (
    AtlasWork,
    AtlasWorker,
    Record,
    Sites,
    SiteSettings,
    import_worker,
)
from raysae.cluster.placement import Placement
from raysae.cluster.pool import Outcome, Work, map_committed, run_in_processes
from raysae.cluster.ray_internals import MAX_PRELOADED
from raysae.cluster.reading import memory_each
from raysae.console.board import console, emit
from raysae.extraction.plan import ExtractionPlan
from raysae.records.commit import figures_of, state_of
from raysae.records.events import Committed, Event, Events, Failed, Progressed
from raysae.records.folder import RunFolder
from raysae.records.rows import SiteRow

SITES_TOGETHER = 16
"""The most sites that are trained as one packed program on a GPU."""


@dataclass(frozen=True)
class AtlasJob:
    """What an atlas is made from: the run, its store, and the settings of every site."""

    run: RunFolder
    store: Store
    settings: SiteSettings
    live: ExtractionPlan | None = None
    """How live rows are computed; None of other stores."""


def warm_up(placement: Placement) -> None:
    """Let processes import what the atlas needs while the last trials are trained: it then begins at
    once. They reserve nothing, and there are at most ``MAX_PRELOADED``."""
    run_in_processes(import_worker, replace(placement, cpus=0.0), MAX_PRELOADED)


def train_atlas(
    job: AtlasJob, sites: list[Site], placement: Placement, events: Events
) -> list[SiteRow]:
    """Train every site that is not committed and write ``atlas/metrics.parquet``; returns its rows.

    A site that fails has a row with the reason; nothing is raised for it.
    """
    records = {}
    with (
        events.work("Atlas", len(sites)) as emit,
        closing(_records(job, sites, placement, events)) as ended,
    ):
        for site, record in ended:
            records[site] = record
            emit(_event(job, site, record))
    rows = [_row(site, records[site]) for site in sites]
    job.run.write_atlas_metrics(rows)
    return rows


def _records(
    job: AtlasJob, sites: list[Site], placement: Placement, events: Events
) -> Generator[tuple[Site, Record], None, None]:
    """The record of each site: first those committed before, then the others as they end."""
    missing = []
    for site in sites:
        record = _committed(job, site)
        if record is not None:
            yield site, record
        elif (reason := nothing_to_train(job.store, site)) is not None:
            yield site, {"failed": reason}
        else:
            missing.append(site)
    outcomes = _trained(job, missing, placement, events)
    with ThreadPoolExecutor(1) as pool, closing(outcomes):
        health = pool.submit(_print_health, job.store, missing)  # while the workers start
        for group, outcome in outcomes:
            health.result()  # an error there is this one's, too
            for site in group:
                yield site, _record_of(job, site, outcome)


def _print_health(store: Store, sites: list[Site]) -> None:
    """Print what is unusual about the rows at each site, the worst of many; or that nothing is."""
    health = StoreHealth([health_of_site(store, site) for site in sites])
    for one in health.sites:
        emit("health", **one.record())
    unusual = [one for one in health.worst if one.findings]
    for one in sorted(unusual[:LISTED], key=lambda one: one.site):
        facts = "; ".join(finding.fact for finding in one.findings)
        console.print(f"Inputs at {one.site}: {facts}")
    for advice in health.advice:
        console.print(f"  {advice}")
    if len(unusual) > LISTED:
        console.print(
            f"Inputs at {len(unusual) - LISTED} more sites are unusual too, but no worse "
            f"(python -m raysae.store show {store.path} --all)"
        )
    known = [one.health for one in health.sites if one.health is not None]
    if usual := [one.mean_ratio for one in known if not one.findings]:
        where = f"{len(usual)} {'other ' * bool(unusual)}site{'s' * (len(usual) > 1)}"
        console.print(
            f"Inputs at {where}: the mean's norm is "
            f"{min(usual):.2f} to {max(usual):.2f} times the spread; no sink rows"
        )


def _trained(
    job: AtlasJob, sites: list[Site], placement: Placement, events: Events
) -> Generator[tuple[Sites, Outcome[dict[Site, Record]]], None, None]:
    """The groups of sites that the pool trains, each with its outcome."""
    resources = job.run.recipe.resources

    def committed(group: Sites) -> dict[Site, Record] | None:
        records = {site: _committed(job, site) for site in group}
        found = {site: record for site, record in records.items() if record is not None}
        return found if len(found) == len(group) else None

    def on_progress(group: Sites, reports: dict[Site, Record]) -> None:
        for site, record in reports.items():
            item = job.run.site_item(site, job.settings.made(site))
            events.emit(Progressed(item, record, record["step"] / max(record["steps"], 1)))

    with _passing(job, sites, placement) as one:
        yield from map_committed(
            one.groups, Work(AtlasWorker, (_sent(job, one),)), committed=committed,
            placement=one.placement, retries=resources.retries,
            hang_seconds=resources.hang_seconds, on_progress=on_progress, label=_label,
        )  # fmt: skip


def _label(group: Sites) -> str:
    """What Ray's dashboard calls the training of a group."""
    more = f" and {len(group) - 1} more" if len(group) > 1 else ""
    return f"atlas {group[0]}{more}"


@contextmanager
def _passing(job: AtlasJob, sites: list[Site], placement: Placement) -> Iterator[LivePass]:
    """The groups of sites that the pool trains, and how live ones are read."""
    if not (job.store.computes_rows and sites):
        yield LivePass(groups_of(sites, placement), placement, None)
        return
    assert job.live is not None
    recipe = job.run.recipe
    fresh = not job.run.holds("atlas")
    with live_pass(recipe, job.store, job.live, job.settings, sites, placement, fresh) as one:
        yield one


def groups_of(sites: list[Site], placement: Placement) -> list[Sites]:
    """The sites in groups, each trained by one worker at a time.

    On GPUs a group is as large as suits a packed program, but every worker gets a group. On CPUs a group
    is one site.
    """
    together = 1
    if placement.gpus:
        together = max(1, min(SITES_TOGETHER, len(sites) // placement.workers))
    return [tuple(sites[start : start + together]) for start in range(0, len(sites), together)]


def _committed(job: AtlasJob, site: Site) -> Record | None:
    return job.run.committed(job.run.atlas_site(site), job.settings.made(site))


def _sent(job: AtlasJob, one: LivePass) -> AtlasWork:
    """What each worker receives when it starts."""
    recipe, placement = job.run.recipe, one.placement
    return AtlasWork(
        files=job.run.for_workers(),
        store=recipe.store_uri or str(job.store.opened_by),
        copy=recipe.resources.copy_store,
        settings=job.settings,
        memory=memory_each(recipe.resources, placement.workers),
        checkpoint_seconds=recipe.resources.checkpoint_seconds,
        live=one.rows,
    )


def _record_of(job: AtlasJob, site: Site, outcome: Outcome[dict[Site, Record]]) -> Record:
    """A site's record. If its group failed: the record committed before the failure, or the reason."""
    if outcome.value is not None:
        return outcome.value[site]
    record = _committed(job, site)
    return record if record is not None else {"failed": str(outcome.failed)}


def _event(job: AtlasJob, site: Site, record: Record) -> Event:
    """The event for the end of a site."""
    item, folder = job.run.site_item(site, job.settings.made(site)), job.run.atlas_site(site)
    if "failed" in record:
        return Failed(item, record["failed"])
    if not folder.is_dir():  # committed on another node
        job.run.fetch(folder)
    return Committed(item, record, folder)


def _row(site: Site, record: Record) -> SiteRow:
    ended, figures = {"state": "failed", "reason": record.get("failed", "")}, {}
    if "failed" not in record:
        ended, figures = state_of(record), figures_of(record)
    return SiteRow(
        site.layer, str(site.position), ended["state"], ended["reason"], figures, site.hookpoint
    )
