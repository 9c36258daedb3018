"""The main job, from recipe to report: ``_run_stages`` reads as its table of contents."""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from raysae.activations import Site, Store, open_store
from raysae.activations.extraction.command import extract_with
from raysae.activations.manifest import MANIFEST_FILE
from raysae.activations.reading import check_sites
from raysae.atlas.training import AtlasJob, atlas_sites, train_atlas
from raysae.board import console
from raysae.cluster.nodes import check_nodes
from raysae.cluster.placement import Placement, place
from raysae.cluster.session import dashboard_url, ray_session
from raysae.config import Recipe, load_recipe, parse_recipe
from raysae.errors import UserError
from raysae.files import read_json, replacing_folder
from raysae.records.environment import write_environment
from raysae.records.folder import RunFolder, open_run
from raysae.records.tables import read_table
from raysae.records.tracking import Recorder, make_recorder, tracking_uri
from raysae.remote import bind, pull, push
from raysae.report.page import write_report
from raysae.sae import SAE, load_sae
from raysae.sae.checkpoint import METRICS_FILE
from raysae.sweep.estimate import needs
from raysae.sweep.preflight import Preflight, atlas_sites_of, check_site, preflight
from raysae.sweep.selection import write_selection
from raysae.sweep.tuning import SweepJob, run_trials
from raysae.sweep.warm import known_trials


@dataclass
class SweepResult:
    """What a run came to."""

    run: RunFolder
    trials: list[dict[str, Any]] = field(default_factory=list)
    """The rows of ``trials.parquet``."""
    selection: dict[str, Any] = field(default_factory=dict)
    """The content of ``selection.json``."""
    atlas: list[dict[str, Any]] = field(default_factory=list)
    """The rows of ``atlas/metrics.parquet``."""
    records_lost: int = 0
    """Records that MLflow did not take."""

    @property
    def d_in(self) -> int:
        """The width of the activations."""
        return open_store(self.run.recipe.store_place).d_in

    @property
    def folder(self) -> Path:
        return self.run.path

    @property
    def sae(self) -> SAE:
        """The sweet spot's SAE."""
        return load_sae(self.run.sweet_spot)

    @property
    def tracking_uri(self) -> str | None:
        return tracking_uri(self.run) if self.run.recipe.records.mlflow else None

    @property
    def failed_trials(self) -> list[str]:
        return [
            f"trial {row['trial']}: {_undone(row)}"
            for row in self.trials
            if _undone(row) and row["state"] != "stopped"  # by the rules that the recipe asked for
        ]

    @property
    def missing_choice(self) -> list[str]:
        if not self.selection or self.selection["choice"]["trial"] is not None:
            return []
        if self.selection["rule"] == "pareto":
            return []  # the choice is the user's
        choice = self.selection["choice"]
        return [f"rule {self.selection['rule']} chose nothing: {choice['reason']}"]

    @property
    def failed_sites(self) -> list[str]:
        return [
            f"layer {row['layer']}, position {row['position']}: {_undone(row)}"
            for row in self.atlas
            if _undone(row)
        ]

    @property
    def failures(self) -> list[str]:
        """What failed, a line each; empty when the run is done in full."""
        return self.failed_trials + self.missing_choice + self.failed_sites


def _undone(row: dict[str, Any]) -> str:
    """Why a trial or a site is not done; empty when it is."""
    prefix = "degenerate: " if row["state"] == "degenerate" else ""
    return "" if row["state"] == "done" else prefix + row["reason"]


def run_sweep(
    recipe: Recipe | Mapping[str, Any] | str | Path | None = None, *, force: bool = False
) -> SweepResult:
    """Run the main job: extract, sweep, select, train the atlas, report.

    ``recipe`` is a Recipe, a dict of its keys, or a YAML file; None is the quickstart. A run that
    was interrupted goes on where it stopped; a finished one is only read; ``force`` goes on although
    recipe, store or version have changed, and records it. Raises UserError on unusable input, before
    any work.
    """
    recipe = as_recipe(recipe)
    checked = preflight(recipe)
    with open_run(recipe, force) as run:
        recorder = make_recorder(run) if not run.finished or run.records_lost else Recorder()
        if run.finished:
            result = read_result(run)
            if run.records_lost:
                record_again(result, recorder)
            result.records_lost = run.records_lost = recorder.close()
            return result
        result = SweepResult(run)
        try:
            with ray_session(recipe.resources):
                _run_stages(result, checked, recorder)
        finally:
            result.records_lost = run.records_lost = recorder.close()
        return result


def select_again(recipe: Recipe) -> SweepResult:
    """Choose anew among the trials of the recipe's run, by its ``select``, without training.

    The sweet spot and the report follow; another go at the run trains the atlas. Raises UserError when
    the run has no trials yet.
    """
    if recipe.run_uri is not None:
        pull(bind(recipe.run_uri))
    if not (recipe.run_folder / "trials.parquet").is_file():
        raise UserError(f"{recipe.run_folder}: has no trials.parquet yet; finish the sweep first")
    with open_run(recipe) as run:
        result = SweepResult(run, read_table(run.trials_file))
        with run.stage("select") as undone:
            result.selection = write_selection(run.selection_file, result.trials, recipe)
            _take_sweet_spot(run, result.selection)
            undone.extend(result.missing_choice)
        write_report(run, open_store(recipe.store_place))
        push(run.path)
        return result


def read_result(run: RunFolder) -> SweepResult:
    """A finished run's result, from its files."""
    atlas = read_table(run.atlas_metrics_file) if run.atlas_metrics_file.exists() else []
    return SweepResult(run, read_table(run.trials_file), read_json(run.selection_file), atlas)


def as_recipe(recipe: Recipe | Mapping[str, Any] | str | Path | None) -> Recipe:
    """The recipe that was meant: itself, its keys, a YAML file; None is the quickstart."""
    if isinstance(recipe, Recipe):
        return recipe
    return parse_recipe(recipe) if isinstance(recipe, Mapping) else load_recipe(recipe)


def _run_stages(result: SweepResult, checked: Preflight, recorder: Recorder) -> None:
    run, recipe = result.run, result.run.recipe
    wanted = needs(recipe, checked.store, checked.plan, atlas_sites_of(recipe, checked))
    placement = place(recipe.resources, wanted.memory_per_trial)
    stored = None if checked.store is None else checked.store.path / MANIFEST_FILE
    check_nodes(run.path, stored, [uri for uri in (recipe.run_uri, recipe.store_uri) if uri])
    _say(f"Ray: {placement}" + (f"; dashboard {url}" if (url := dashboard_url()) else ""))
    with run.stage("extract"):
        store = _store(checked, run.recipe)
        for site in checked.sites:
            check_site(store, site)
        check_sites(store, [*checked.sites, *_atlas_sites(run.recipe, store)])
    fingerprint = run.bind_store(store.digest)
    write_environment(run.path, store.digest, run.recipe.seed)
    with run.stage("sweep") as undone:
        known = known_trials(run.recipe)
        job = SweepJob(run, store, checked.sites, fingerprint, placement, recorder, known)
        result.trials = run_trials(job)
        undone.extend(result.failed_trials)
    with run.stage("select") as undone:
        result.selection = write_selection(run.selection_file, result.trials, run.recipe)
        _take_sweet_spot(run, result.selection)
        undone.extend(result.missing_choice)
    with run.stage("atlas") as undone:
        result.atlas = _atlas(result, store, fingerprint, placement, recorder)
        undone.extend(result.failed_sites)
    with run.stage("report"):
        write_report(run, store)
        _record_outcome(result, recorder)


def _store(checked: Preflight, recipe: Recipe) -> Store:
    if checked.store is not None:
        _say(f"Store: {checked.store.path} is there already")
        return checked.store
    assert checked.plan is not None
    return extract_with(checked.plan, recipe)


def _take_sweet_spot(run: RunFolder, selection: dict[str, Any]) -> None:
    number = selection["choice"]["trial"]
    if number is not None:
        with replacing_folder(run.sweet_spot) as temporary:
            shutil.copytree(run.trial(number), temporary, dirs_exist_ok=True)


def _atlas(
    result: SweepResult, store: Store, fingerprint: str, placement: Placement, recorder: Recorder
) -> list[dict[str, Any]]:
    recipe, number = result.run.recipe, result.selection["choice"]["trial"]
    if number is None or not recipe.atlas.enabled:
        return []
    parameters = read_json(result.run.trial(number) / "metrics.json")["parameters"]
    sae, training = recipe.with_parameters(parameters)
    job = AtlasJob(result.run, store, sae, training, fingerprint, parameters)
    sites = _atlas_sites(recipe, store)
    _say(f"Training trial {number}'s config at {len(sites)} sites")
    return train_atlas(job, sites, placement, recorder)


def _atlas_sites(recipe: Recipe, store: Store) -> list[Site]:
    if not recipe.atlas.enabled:
        return []
    return atlas_sites(store, recipe.atlas.layers, recipe.atlas.positions)


def _record_outcome(result: SweepResult, recorder: Recorder) -> None:
    run, choice = result.run, result.selection["choice"]
    chosen = next((row for row in result.trials if row["trial"] == choice["trial"]), {})
    tags = {"raysae.choice": str(choice["trial"]), "raysae.reason": choice["reason"]}
    files = [run.path / "config.yaml", run.path / "environment.json", run.trials_file]
    files += [run.selection_file, run.report_page.parent, run.sweet_spot, run.atlas_metrics_file]
    recorder.finish(chosen, tags, [file for file in files if file.exists()])


def record_again(result: SweepResult, recorder: Recorder) -> None:
    """Write to MLflow what a finished run's files hold and it has not taken."""
    run = result.run
    for row in result.trials:
        key, name = f"trial/{row['trial']:03d}", f"trial {row['trial']}"
        folder = run.trial(row["trial"])
        if (folder / METRICS_FILE).is_file():
            recorder.sae_done(key, name, read_json(folder / METRICS_FILE), folder)
        else:
            recorder.failed(key, name, row["reason"])
    for path in sorted((run.path / "atlas").glob(f"layer=*/position=*/{METRICS_FILE}")):
        site = Site.of_folder(path.parent.relative_to(run.path / "atlas").as_posix())
        recorder.sae_done(f"atlas/{site.folder}", str(site), read_json(path), path.parent)
    _record_outcome(result, recorder)


def _say(text: str) -> None:
    console.print(text)
