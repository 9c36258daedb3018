"""Training the atlas: its sites as items of the pool, each its own commit."""

from collections.abc import Generator, Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from raysae.activations import Site, Store
from raysae.activations.reading import memory_each
from raysae.atlas.worker import AtlasWork, AtlasWorker, SiteSettings
from raysae.cluster.placement import Placement
from raysae.cluster.pool import Outcome, Work, map_committed
from raysae.errors import UserError
from raysae.records.commit import figures_of, state_of
from raysae.records.events import Committed, Event, Events, Failed, Progressed
from raysae.records.folder import RunFolder
from raysae.records.rows import SiteRow


@dataclass(frozen=True)
class AtlasJob:
    """What an atlas is made from: the run, its store, and what every site is trained with."""

    run: RunFolder
    store: Store
    settings: SiteSettings


def train_atlas(
    job: AtlasJob, sites: list[Site], placement: Placement, events: Events
) -> list[SiteRow]:
    """Train every site that is not committed yet and write ``atlas/metrics.parquet``; its rows."""
    records = {}
    with (
        events.work("Atlas", len(sites)) as emit,
        closing(_records(job, sites, placement, events)) as ended,
    ):
        for site, record in ended:
            records[site] = record
            emit(_event(job, site, record))
    rows = [_row(site, records[site]) for site in sites]
    job.run.write_table(job.run.atlas_metrics_file, rows)
    return rows


def _records(
    job: AtlasJob, sites: list[Site], placement: Placement, events: Events
) -> Generator[tuple[Site, dict[str, Any]], None, None]:
    """Each site's record as it becomes ready: those committed before, then those trained now."""
    run, resources = job.run, job.run.recipe.resources

    def committed(site: Site) -> dict[str, Any] | None:
        return run.committed(run.atlas_site(site), job.settings.made(site))

    def on_progress(site: Site, record: Mapping[str, Any]) -> None:
        item = run.site_item(site, job.settings.made(site))
        events.emit(Progressed(item, record, record["step"] / record["steps"]))

    outcomes = map_committed(
        sites, Work(AtlasWorker, (_sent(job, placement),)), committed=committed,
        placement=placement, retries=resources.retries, hang_seconds=resources.hang_seconds,
        on_progress=on_progress,
    )  # fmt: skip
    with closing(outcomes):
        for site, outcome in outcomes:
            yield site, outcome.value or {"failed": _failure(job, site, outcome)}


def _sent(job: AtlasJob, placement: Placement) -> AtlasWork:
    """What each worker is sent, once."""
    recipe = job.run.recipe
    return AtlasWork(
        files=job.run.for_workers(),
        store=recipe.store_uri or str(job.store.path.absolute()),
        settings=job.settings,
        memory=memory_each(recipe.resources, placement.workers),
        checkpoint_seconds=recipe.resources.checkpoint_seconds,
    )


def _failure(job: AtlasJob, site: Site, outcome: Outcome[Any]) -> str:
    """Why the site failed; an exception's traceback goes beside the site's folder."""
    reason = str(outcome.failed)
    if not outcome.trace:
        return reason
    file = job.run.atlas_site(site).with_suffix(".failure.txt")
    hint = "" if "; " in reason else f"; its traceback is in {file.relative_to(job.run.path)}"
    try:
        job.run.write_text(file, outcome.trace)
    except (OSError, UserError) as error:  # a full disk may be the very reason
        return f"{reason}{hint} (the traceback could not be written: {error})"
    return reason + hint


def _event(job: AtlasJob, site: Site, record: dict[str, Any]) -> Event:
    """What the end of a site tells."""
    item, folder = job.run.site_item(site, job.settings.made(site)), job.run.atlas_site(site)
    if "failed" in record:
        return Failed(item, record["failed"])
    if not folder.is_dir():  # another node's
        job.run.fetch(folder)
    return Committed(item, record, folder)


def _row(site: Site, record: dict[str, Any]) -> SiteRow:
    if "failed" in record:
        return SiteRow(site.layer, str(site.position), "failed", record["failed"])
    ended = state_of(record)
    return SiteRow(
        site.layer, str(site.position), ended["state"], ended["reason"], figures_of(record)
    )
