"""The controls of a run: made by workers of the pool, a record for each site, and put together."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from raysae.activations import Site, Store
from raysae.cluster.placement import Placement, place_extraction
from raysae.cluster.pool import Work, map_committed
from raysae.cluster.reading import memory_each
from raysae.config.search import Control
from raysae.errors import UnfinishedError, UserError
from raysae.identity import identifier
from raysae.records import products
from raysae.records.folder import RunFolder
from raysae.records.rows import TrialRow
from raysae.records.run_files import MEMBERS
from raysae.sae.checkpoint import CONFIG_FILE, METRICS_FILE
from raysae.storage.files import read_json
from raysae.storage.remote import pull, remove
from raysae.sweep.controls.covariance import components_to_reach
from raysae.sweep.controls.fits import Record, Shape, together
from raysae.sweep.controls.verdict import Chosen, verdict
from raysae.sweep.controls.worker import ControlWork, ControlWorker

SHUFFLED: Control = "shuffled_model"
SHUFFLED_STORE = "controls/store"
"""The store of the shuffled model, in the run folder, until its control is made."""
NOT_KEPT = (
    "the rows are computed while they are trained on and were not kept, and every control would be a "
    "pass of the model more; with source.keep=yes they are on disk"
)


@dataclass(frozen=True)
class ControlsJob:
    """What controls are made from: the run, its store and sites, the chosen trial and its settings."""

    run: RunFolder
    store: Store
    sites: Sequence[Site]
    trial: TrialRow
    shape: Shape
    placement: Placement

    @property
    def names(self) -> tuple[Control, ...]:
        """The controls that the recipe wants."""
        return self.run.recipe.sweep.wanted_controls


def make_controls(job: ControlsJob) -> tuple[dict[str, Any], list[str]]:
    """The content of ``controls.json``, and a line for each control that failed and may be tried again.

    Controls that cannot be made are in it with the ``reason``.
    """
    found: dict[str, Record] = {}
    undone: list[str] = []
    for name, record in _records(job):
        found[name] = record
        if "failed" in record:
            undone.append(f"control {name}: {record['failed']}")
            found[name] = {"reason": record["failed"], "failed": True}
    return _content(job, {name: found[name] for name in job.names if name in found}), undone


def _records(job: ControlsJob) -> Iterator[tuple[Control, Record]]:
    """Each control by name: its figures over all sites, or ``reason`` or ``failed``."""
    of_rows = tuple(name for name in job.names if name != SHUFFLED)
    if job.store.computes_rows:
        yield from ((name, {"reason": NOT_KEPT}) for name in of_rows)
    elif of_rows:
        yield from _of_store(job, job.store, of_rows).items()
    if SHUFFLED in job.names:
        yield SHUFFLED, _of_shuffled_model(job)


def _of_shuffled_model(job: ControlsJob) -> Record:
    """The record of the model with shuffled weights, whose store is removed once it is made."""
    from raysae.extraction.plan import existing_store, plan_shuffled
    from raysae.extraction.run import extract

    recipe = job.run.recipe
    if recipe.source is None or job.store.manifest.provenance != "model":
        return {"reason": "the model is not at hand: the store was not extracted by this recipe"}
    known = _known(job, job.store, (SHUFFLED,), list(job.sites))
    if len(known) == len(job.sites):
        return together([known[site][SHUFFLED] for site in job.sites])
    try:
        plan = plan_shuffled(recipe, job.sites, recipe.seed, SHUFFLED_STORE)
        store = existing_store(plan)
        if store is None:
            store = extract(plan, place_extraction(recipe.resources), recipe.resources)
    except UnfinishedError as error:
        return {"failed": str(error)}
    except UserError as error:
        return {"reason": f"the model cannot be read with shuffled weights: {error}"}
    record = _of_store(job, store, (SHUFFLED,))[SHUFFLED]
    if "failed" not in record:
        remove(plan.folder)
    return record


def _of_store(job: ControlsJob, store: Store, names: tuple[Control, ...]) -> dict[Control, Record]:
    """The records of the controls ``names`` on the rows of ``store``, over all sites."""
    run, resources, sites = job.run, job.run.recipe.resources, list(job.sites)
    known = _known(job, store, names, sites)
    work = ControlWork(
        run.for_workers(), str(store.uri or store.opened_by), job.shape, names,
        memory_each(resources, job.placement.workers), resources.copy_store,
    )  # fmt: skip
    outcomes = map_committed(
        sites, Work(ControlWorker, (work,)), committed=known.get, placement=job.placement,
        retries=resources.retries, hang_seconds=resources.hang_seconds,
        label=lambda site: f"controls {site}",
    )  # fmt: skip
    with closing(outcomes):
        for site, outcome in outcomes:
            failed: dict[str, Record] = {name: {"failed": str(outcome.failed)} for name in names}
            known[site] = outcome.value if outcome.value is not None else failed
            if not any("failed" in record for record in known[site].values()):
                made = {"made": _made(job, names, site), "controls": known[site]}
                run.write_json(_file(job, names, site), made)
    return {name: _over_sites([known[site][name] for site in sites]) for name in names}


def _over_sites(records: Sequence[Record]) -> Record:
    failed = [record for record in records if "failed" in record]
    return failed[0] if failed else together(records)


def _known(
    job: ControlsJob, store: Store, names: tuple[Control, ...], sites: Sequence[Site]
) -> dict[Site, dict[str, Record]]:
    """The records of the sites that an earlier attempt made."""
    found = {}
    for site in sites:
        file = _file(job, names, site)
        pull(file)
        try:
            record = read_json(file) if file.is_file() else None
        except UserError:  # damaged: made again
            record = None
        if isinstance(record, dict) and record.get("made") == _made(job, names, site):
            found[site] = record["controls"]
    return found


def _made(job: ControlsJob, names: tuple[Control, ...], site: Site) -> dict[str, Any]:
    """What makes the controls of a site."""
    shape = job.shape
    trained = products.trained(
        "controls", job.store.digest, [site], shape.seeds, shape.sae, shape.training
    )
    return {**trained, "controls": list(names)}


def _file(job: ControlsJob, names: tuple[Control, ...], site: Site) -> Path:
    """The file of the controls of a site; the settings decide its name, so that two never meet."""
    return job.run.controls_folder / f"{identifier(_made(job, names, site))}.json"


def _content(job: ControlsJob, controls: Mapping[str, Record]) -> dict[str, Any]:
    trial, shape = job.trial, job.shape
    k = components_of(trial)
    by_seed = seed_figures(job.run, trial)
    chosen = Chosen(trial.explained_variance, by_seed, trial.stability)
    shown = {name: with_share(one, trial.explained_variance, k) for name, one in controls.items()}
    return {
        "trial": trial.trial,
        "config": trial.config,
        "sites": [site.folder for site in job.sites],
        "explained_variance": _number(trial.explained_variance),
        "by_seed": by_seed,
        "stability": trial.stability,
        "l0": trial.l0,
        "components": k,
        "seeds": len(shape.seeds),
        "controls": shown,
        **verdict(chosen, shown, k),
    }


def components_of(trial: TrialRow) -> int:
    """The components that PCA gets beside a trial: K, or the rounded L0 of a variant without K."""
    return trial.k if trial.k is not None else max(round(trial.l0), 1)


def with_share(record: Record, reached: float, k: int) -> Record:
    """A control's record with the share of the SAE's explained variance; that of PCA with its figures."""
    if "by_components" in record:
        explained = [math.nan if one is None else one for one in record["by_components"]]
        value = explained[min(k, len(explained) - 1)]
        to_reach = components_to_reach(explained, reached)
        record = {"explained_variance": _number(value), "components_to_reach": to_reach, **record}
    value = record.get("explained_variance")
    if value is None or not reached > 0:
        return record
    return {"explained_variance": value, "share": value / reached, **record}


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value


def seed_figures(run: RunFolder, trial: TrialRow) -> list[float]:
    """The explained variance of each seed of a trial, over its sites; empty where it has one seed."""
    first = run.trial(trial.trial)
    members = first.with_suffix(MEMBERS)
    run.fetch(members)
    own = read_json(first / CONFIG_FILE).get("metadata", {}).get("metrics", {})
    by_seed = {str(run.recipe.seed): [own.get("explained_variance")]}
    for file in sorted(members.rglob(METRICS_FILE)):
        seed = file.parent.name.rpartition("seed=")[2]
        by_seed.setdefault(seed, []).append(read_json(file).get("explained_variance"))
    known = [[one for one in values if one is not None] for values in by_seed.values()]
    return [fmean(values) for values in known if values] if len(by_seed) > 1 else []
