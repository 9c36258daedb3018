"""Training the atlas: its sites as items of the pool, each its own commit."""

from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from raysae.activations import Site, Store
from raysae.activations.reading import memory_each
from raysae.atlas.worker import AtlasWork, AtlasWorker
from raysae.board import Board, figures
from raysae.cluster.placement import Placement
from raysae.cluster.pool import Outcome, Work, map_committed
from raysae.errors import UserError
from raysae.files import write_text
from raysae.records.commit import COST_COLUMNS, committed, state_of
from raysae.records.folder import RunFolder
from raysae.records.tables import write_table
from raysae.records.tracking import Recorder
from raysae.remote import pull, push
from raysae.sae import SAEConfig
from raysae.training import TrainingConfig


@dataclass(frozen=True)
class AtlasJob:
    """What every site of an atlas shares."""

    run: RunFolder
    store: Store
    sae: SAEConfig
    training: TrainingConfig
    fingerprint: str
    parameters: dict[str, Any]

    def of(self, site: Site) -> dict[str, Any]:
        """What identifies the site's commit."""
        return {
            "layer": site.layer,
            "position": site.position,
            "parameters": self.parameters,
            "fingerprint": self.fingerprint,
        }


def train_atlas(
    job: AtlasJob, sites: list[Site], placement: Placement, recorder: Recorder
) -> list[dict[str, Any]]:
    """Train every site that is not committed yet and write ``atlas/metrics.parquet``; its rows."""
    records = {}
    with (
        Board("Atlas", len(sites)) as board,
        closing(_records(job, sites, placement, board)) as ended,
    ):
        for site, record in ended:
            records[site] = record
            if "failed" in record:
                board.update(str(site), {"failed": record["failed"]}, 1.0)
                recorder.failed(_key(site), str(site), record["failed"])
            else:
                board.update(str(site), figures(record["metrics"]), 1.0)
                if not job.run.atlas_site(site).is_dir():  # another node's
                    pull(job.run.atlas_site(site))
                recorder.sae_done(_key(site), str(site), record, job.run.atlas_site(site))
    rows = [_row(site, records[site]) for site in sites]
    write_table(job.run.atlas_metrics_file, rows)
    return rows


def _records(
    job: AtlasJob, sites: list[Site], placement: Placement, board: Board
) -> Generator[tuple[Site, dict[str, Any]], None, None]:
    """Each site's record as it becomes ready: those committed before, then those trained now."""
    resources = job.run.recipe.resources
    outcomes = map_committed(
        sites, Work(AtlasWorker, (_sent(job, sites, placement),)),
        committed=lambda site: committed(job.run.atlas_site(site), job.of(site)),
        placement=placement, retries=resources.retries, hang_seconds=resources.hang_seconds,
        on_progress=lambda site, record: _show(board, site, record),
    )  # fmt: skip
    with closing(outcomes):
        for site, outcome in outcomes:
            yield site, outcome.value or {"failed": _failure(job, site, outcome)}


def _sent(job: AtlasJob, sites: list[Site], placement: Placement) -> AtlasWork:
    """What each worker is sent, once."""
    recipe = job.run.recipe
    return AtlasWork(
        run=job.run.path,
        run_uri=recipe.run_uri,
        store=recipe.store_uri or str(job.store.path.absolute()),
        sae=job.sae,
        training=job.training,
        seed=recipe.seed,
        memory=memory_each(recipe.resources, placement.workers),
        checkpoint_seconds=recipe.resources.checkpoint_seconds,
        identities={site: job.of(site) for site in sites},
    )


def _show(board: Board, site: Site, record: dict[str, Any]) -> None:
    """A site in mid-training."""
    board.update(str(site), figures(record), record["step"] / record["steps"], record)


def _failure(job: AtlasJob, site: Site, outcome: Outcome[Any]) -> str:
    """Why the site failed; an exception's traceback goes beside the site's folder."""
    reason = str(outcome.failed)
    if not outcome.trace:
        return reason
    file = job.run.atlas_site(site).with_suffix(".failure.txt")
    hint = "" if "; " in reason else f"; its traceback is in {file.relative_to(job.run.path)}"
    try:
        write_text(file, outcome.trace)
        push(file)
    except (OSError, UserError) as error:  # a full disk may be the very reason
        return f"{reason}{hint} (the traceback could not be written: {error})"
    return reason + hint


def _key(site: Site) -> str:
    return f"atlas/{site.folder}"


def _row(site: Site, record: dict[str, Any]) -> dict[str, Any]:
    # positions may be numbers or "all", and a Parquet column has one type
    row = {"layer": site.layer, "position": str(site.position)}
    if "failed" in record:
        return {**row, "state": "failed", "reason": record["failed"]}
    costs = {key: record.get(key) for key in COST_COLUMNS}
    return {**row, **state_of(record), **record["metrics"], **costs}
