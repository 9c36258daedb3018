"""The stages of a run, one after the other: ``run_stages`` reads as their table of contents.

Ray Tune and what else takes long to import is imported here, while Ray starts.
"""

import shutil
from collections.abc import Callable
from typing import Any

from raysae.activations import Site, Store
from raysae.activations.extraction.command import extract_with
from raysae.activations.manifest import MANIFEST_FILE
from raysae.activations.reading import check_sites
from raysae.atlas.sites import atlas_sites
from raysae.atlas.training import AtlasJob, train_atlas
from raysae.board import console
from raysae.cluster.nodes import check_nodes
from raysae.cluster.placement import Placement
from raysae.cluster.session import dashboard_url
from raysae.config import Recipe
from raysae.files import read_json, replacing_folder
from raysae.records.environment import write_environment
from raysae.records.folder import RunFolder
from raysae.records.tracking import Recorder
from raysae.report.page import write_report
from raysae.sae.checkpoint import METRICS_FILE
from raysae.sweep.admission import admit
from raysae.sweep.estimate import needs
from raysae.sweep.preflight import Preflight, atlas_sites_of, check_site
from raysae.sweep.result import SweepResult
from raysae.sweep.selection import write_selection
from raysae.sweep.tuning import SweepJob, run_trials
from raysae.sweep.warm import known_trials


def run_stages(
    result: SweepResult, checked: Preflight, recorder: Recorder, stop_ray: Callable[[], None]
) -> None:
    """Run what is left of the run; ``stop_ray`` is called when Ray is no longer needed."""
    run, recipe = result.run, result.run.recipe
    wanted = needs(recipe, checked.store, checked.plan, atlas_sites_of(recipe, checked))
    admitted = admit(recipe, wanted)
    placement = admitted.placement
    stored = None if checked.store is None else checked.store.path / MANIFEST_FILE
    check_nodes(run.path, stored, [uri for uri in (recipe.run_uri, recipe.store_uri) if uri])
    _say(f"Ray: {admitted}" + (f"; dashboard {url}" if (url := dashboard_url()) else ""))
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
    if not recipe.atlas.enabled:
        stop_ray()
    with run.stage("select") as undone:
        result.selection = write_selection(run.selection_file, result.trials, run.recipe)
        take_sweet_spot(run, result.selection)
        undone.extend(result.missing_choice)
    with run.stage("atlas") as undone:
        result.atlas = _atlas(result, store, fingerprint, placement, recorder)
        undone.extend(result.failed_sites)
    stop_ray()
    with run.stage("report"):
        write_report(run, store)
        _record_outcome(result, recorder)


def _store(checked: Preflight, recipe: Recipe) -> Store:
    if checked.store is not None:
        _say(f"Store: {checked.store.path} is there already")
        return checked.store
    assert checked.plan is not None
    return extract_with(checked.plan, recipe)


def take_sweet_spot(run: RunFolder, selection: dict[str, Any]) -> None:
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
