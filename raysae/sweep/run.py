"""The main job: a recipe is checked, its run folder opened, Ray started, and the stages are run."""

import importlib
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from raysae.activations import open_store
from raysae.cluster.session import ray_session
from raysae.config import Recipe, ResourcesConfig, load_recipe, parse_recipe
from raysae.errors import UserError
from raysae.records.folder import open_run
from raysae.records.tables import read_table
from raysae.records.tracking import Recorder, make_recorder
from raysae.remote import bind, pull, push
from raysae.sweep.preflight import preflight
from raysae.sweep.result import SweepResult, read_result


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
                from raysae.sweep.stages import record_again

                record_again(result, recorder)
            result.records_lost = run.records_lost = recorder.close()
            return result
        result = SweepResult(run)
        try:
            with trial_session(recipe.resources) as stop_ray:
                from raysae.sweep.stages import run_stages

                run_stages(result, checked, recorder, stop_ray)
        finally:
            result.records_lost = run.records_lost = recorder.close()
        return result


def select_again(recipe: Recipe) -> SweepResult:
    """Choose anew among the trials of the recipe's run, by its ``select``, without training.

    The sweet spot and the report follow; another go at the run trains the atlas. Raises UserError when
    the run has no trials yet.
    """
    from raysae.report.page import write_report
    from raysae.sweep.selection import write_selection
    from raysae.sweep.stages import take_sweet_spot

    if recipe.run_uri is not None:
        pull(bind(recipe.run_uri))
    if not (recipe.run_folder / "trials.parquet").is_file():
        raise UserError(f"{recipe.run_folder}: has no trials.parquet yet; finish the sweep first")
    with open_run(recipe) as run:
        result = SweepResult(run, read_table(run.trials_file))
        with run.stage("select") as undone:
            result.selection = write_selection(run.selection_file, result.trials, recipe)
            take_sweet_spot(run, result.selection)
            undone.extend(result.missing_choice)
        write_report(run, open_store(recipe.store_place))
        push(run.path)
        return result


def as_recipe(recipe: Recipe | Mapping[str, Any] | str | Path | None) -> Recipe:
    """The recipe that was meant: itself, its keys, a YAML file; None is the quickstart."""
    if isinstance(recipe, Recipe):
        return recipe
    return parse_recipe(recipe) if isinstance(recipe, Mapping) else load_recipe(recipe)


def trial_session(resources: ResourcesConfig) -> AbstractContextManager[Callable[[], None]]:
    """A Ray for trials; what driver and workers have to import for them is imported while it starts."""
    return ray_session(resources, _load_stages, workers_import="raysae.sweep.trainable")


def _load_stages() -> None:
    """Import what the stages need, which takes seconds."""
    for name in ("raysae.sweep.stages", "raysae.report.plots"):
        importlib.import_module(name)
