"""Training the atlas: sites spread over Ray actors, several SAEs an actor, each site its own commit."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray

from raysae.activations import Site, Store, open_store
from raysae.activations.reading import memory_each
from raysae.activations.streaming import rows_within
from raysae.board import Board, figures
from raysae.cluster.placement import Placement
from raysae.cluster.worker import prepare_worker
from raysae.config import Recipe
from raysae.records.commit import COST_COLUMNS, provenance, state_of, train_to_commit
from raysae.records.folder import RunFolder
from raysae.records.products import trained
from raysae.records.run_files import RunFiles
from raysae.records.tracking import Recorder
from raysae.sae import SAEConfig
from raysae.training import Trainer, TrainingConfig


@dataclass(frozen=True)
class AtlasJob:
    """What every site of an atlas shares."""

    run: RunFolder
    store: Store
    sae: SAEConfig
    training: TrainingConfig
    parameters: dict[str, Any]

    def of(self, site: Site) -> dict[str, Any]:
        """The site with its settings, and what makes its SAE, as its commit has them."""
        seeds = [self.run.recipe.seed]
        return {
            "layer": site.layer,
            "position": site.position,
            "parameters": self.parameters,
            "made": trained("site", self.store.digest, [site], seeds, self.sae, self.training),
        }


def train_atlas(
    job: AtlasJob, sites: list[Site], placement: Placement, recorder: Recorder
) -> list[dict[str, Any]]:
    """Train every site that is not committed yet and write ``atlas/metrics.parquet``; its rows."""
    records = {}
    with Board("Atlas", len(sites)) as board:
        for site, record in _records(job, sites, placement):
            records[site] = record
            if "failed" in record:
                board.update(str(site), {"failed": record["failed"]}, 1.0)
                recorder.failed(_key(site), str(site), record["failed"])
            else:
                board.update(str(site), figures(record["metrics"]), 1.0)
                if not job.run.atlas_site(site).is_dir():  # another node's
                    job.run.fetch(job.run.atlas_site(site))
                recorder.sae_done(_key(site), str(site), record, job.run.atlas_site(site))
    rows = [_row(site, records[site]) for site in sites]
    job.run.write_table(job.run.atlas_metrics_file, rows)
    return rows


def _records(
    job: AtlasJob, sites: list[Site], placement: Placement
) -> Iterator[tuple[Site, dict[str, Any]]]:
    """Each site's record as it becomes ready: those committed before, then those trained now."""
    missing = []
    for site in sites:
        record = job.run.committed(job.run.atlas_site(site), job.of(site)["made"])
        if record is None:
            missing.append(site)
        else:
            yield site, record
    if missing:
        yield from _trained(job, missing, placement)


def _trained(
    job: AtlasJob, sites: list[Site], placement: Placement
) -> Iterator[tuple[Site, dict[str, Any]]]:
    worker = ray.remote(**placement.ray_options)(AtlasWorker)
    memory = memory_each(job.run.recipe.resources, placement.workers)
    actors = [
        worker.remote(job.run.recipe, job.run.for_workers(), job.store.path, memory)
        for _ in range(min(placement.workers, len(sites)))
    ]
    waiting, running = list(sites), {}
    try:
        for actor in actors:
            site = waiting.pop(0)
            running[actor.train.remote(job, site)] = actor, site
        while running:
            (ready,), _ = ray.wait(list(running))
            actor, site = running.pop(ready)
            yield site, _outcome(ready)
            if waiting:
                following = waiting.pop(0)
                running[actor.train.remote(job, following)] = actor, following
    finally:
        for actor in actors:
            ray.kill(actor)


def _outcome(reference: Any) -> dict[str, Any]:
    try:
        return ray.get(reference)
    except ray.exceptions.RayError as error:
        cause = getattr(error, "cause", None) or error
        return {"failed": f"{type(cause).__name__}: {str(cause).splitlines()[0]}"}


class AtlasWorker:
    """Trains one site after another; reads each site's shards itself, once."""

    def __init__(self, recipe: Recipe, files: RunFiles, store: Path, memory: float):
        self.device = prepare_worker()
        self.files = files.on_this_node()
        self.store, self.memory = open_store(recipe.store_uri or store), memory

    def train(self, job: AtlasJob, site: Site) -> dict[str, Any]:
        """Train and commit one site; its record."""
        rows = rows_within(self.store, site, self.memory)
        trainer = Trainer(
            job.sae, job.training, rows.train, rows.validation, seed=job.run.recipe.seed,
            device=self.device, truth=rows.truth,
        )  # fmt: skip
        return train_to_commit(
            self.files, trainer, self.files.atlas_site(site), job.of(site),
            provenance(self.store, site),
        )  # fmt: skip


def _key(site: Site) -> str:
    return f"atlas/{site.folder}"


def _row(site: Site, record: dict[str, Any]) -> dict[str, Any]:
    # positions may be numbers or "all", and a Parquet column has one type
    row = {"layer": site.layer, "position": str(site.position)}
    if "failed" in record:
        return {**row, "state": "failed", "reason": record["failed"]}
    costs = {key: record.get(key) for key in COST_COLUMNS}
    return {**row, **state_of(record), **record["metrics"], **costs}
