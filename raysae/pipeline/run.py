"""The main job: check the recipe, open its run folder, run the stages that are missing."""

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from raysae.cluster.session import ray_session
from raysae.config import Recipe, ResourcesConfig, load_recipe, parse_recipe
from raysae.errors import UserError, in_one_line
from raysae.pipeline.analysis import Analyze
from raysae.pipeline.begun import Begun, told_if_begun
from raysae.pipeline.gauges import GaugeListener, wants_gauges
from raysae.pipeline.outcome import emit_again
from raysae.pipeline.plan import RunPlan
from raysae.pipeline.preflight import preflight
from raysae.pipeline.result import SweepResult
from raysae.pipeline.stage import Stage
from raysae.pipeline.stages import (
    ATLAS,
    CONTROLS,
    SCALING,
    SELECT,
    SWEEP,
    Attempt,
    atlas_and_analysis,
    end_run,
    ensure_store,
    is_finished,
    run_stage,
    run_stages,
    set_damaged_aside,
    stages_of,
)
from raysae.records.choice import given_config
from raysae.records.console_listener import ConsoleListener
from raysae.records.damage import rebuilt_by
from raysae.records.events import Events
from raysae.records.folder import RunFolder, open_run
from raysae.records.mlflow_listener import make_recorder
from raysae.records.run_files import RunFiles

HEAVY_MODULES = (
    "raysae.extraction.extract_command", "raysae.atlas.training", "raysae.report.page",
    "raysae.report.plots", "raysae.report.charts.style", "raysae.pipeline.admission",
    "raysae.pipeline.preflight", "raysae.sweep.trials.tuning",
)  # fmt: skip
"""Modules that the stages import when they work, and that take seconds to import."""
WORKERS_IMPORT = "raysae.sweep.trials.trial"
"""What all workers need: torch and the training, without Tune, which only those of trials use."""


def run_sweep(
    recipe: Recipe | Mapping[str, Any] | str | Path | None = None, *, force: bool = False
) -> SweepResult:
    """Run the main job: extract, sweep, select, train the atlas, report.

    ``recipe`` is a Recipe, a dict of its keys, or a YAML file; None is the quickstart. An interrupted
    run continues where it stopped, a run that has less than the recipe asks for is extended, and a
    finished run is only read. With ``force`` a run continues although settings that its products share
    have changed; the change is recorded. Raises UserError on unusable input, before any work.
    """
    return run_plan(preflight(as_recipe(recipe)), force=force)


def run_atlas(recipe: Recipe, *, force: bool = False) -> SweepResult:
    """Train the sites that the atlas of a run lacks, with the config that the run has chosen.

    The run's search stays as it is: failed trials are not tried again. Raises what ``run_sweep`` raises.
    """
    return run_plan(preflight(recipe), force=force, chosen=recipe.sweep.enabled)


def run_plan(plan: RunPlan, *, force: bool = False, chosen: bool = False) -> SweepResult:
    """Run the main job by a plan of ``preflight``; see ``run_sweep``, and ``run_atlas`` (``chosen``)."""
    with (
        told_if_begun(plan.recipe) as begun,
        open_run(plan.recipe, force, plan.data) as run,
        _attempt(plan, run, begun) as attempt,
    ):
        set_damaged_aside(run)
        finished = is_finished(attempt)
        if not finished and chosen:
            _run_chosen(attempt)
        elif not finished:
            first, *_ = stages_of(plan.recipe)
            if attempt.plan.store is None or first.is_missing(attempt):
                _ = attempt.placement  # Ray will be needed: start it first
            run_stages(attempt)
        elif run.records_lost:
            listeners = attempt.events.listeners[1:]  # not the console
            emit_again(attempt.result, Events(*listeners))
        return attempt.result


def _run_chosen(attempt: Attempt) -> None:
    """Make what is missing after the choice. Raises UserError when table or choice are damaged."""
    ensure_store(attempt)
    _read_trials(attempt)
    SELECT.check(attempt)
    for stage in (CONTROLS, SCALING):
        if not stage.is_missing(attempt):
            stage.read(attempt)
    atlas_and_analysis(attempt)
    attempt.stop_ray()
    end_run(attempt)


def select_again(recipe: Recipe) -> SweepResult:
    """Choose again among the trials of the recipe's run, by its ``select``, without training.

    The sweet spot and the report are replaced. If the atlas of the new choice is missing, another
    attempt at the run trains it. Raises UserError when the run has no trials yet.
    """
    files = RunFiles.of(recipe)
    files.fetch()
    if not files.trials_file.is_file():
        raise UserError(f"{files.path}: has no trials.parquet yet; finish the sweep first")
    plan = preflight(recipe)
    with (
        told_if_begun(recipe) as begun,
        open_run(recipe, data=plan.data) as run,
        _attempt(plan, run, begun) as attempt,
    ):
        ensure_store(attempt)
        _read_trials(attempt)
        run_stage(SELECT, attempt)
        _read_or_leave(CONTROLS, attempt)
        _read_or_leave(ATLAS, attempt)
        run_stage(SCALING, attempt)
        end_run(attempt)
        return attempt.result


def analyze_run(
    recipe: Recipe, phases: Sequence[str], asked: bool
) -> tuple[SweepResult, list[str]]:
    """Run phases of the analysis on the atlas of the recipe's run, and make its page again.

    Returns the result, and what failed, a line each. With ``asked`` the phases were asked for by name;
    otherwise those that lack something are left out. Raises UserError when the run has no atlas, or a
    phase that was asked for lacks what it needs.
    """
    plan = preflight(recipe)
    with (
        told_if_begun(recipe) as begun,
        open_run(recipe, data=plan.data) as run,
        _attempt(plan, run, begun) as attempt,
    ):
        if not run.committed_sites():
            raise UserError(f"{run.path}: the run has no atlas yet; finish it first")
        ensure_store(attempt)
        for earlier in stages_of(recipe)[:-2]:
            if run.state(earlier.name) in ("done", "partial"):
                earlier.read(attempt)
        stage = Analyze(phases, asked)
        failures: list[str] = []
        with run.stage(stage.name, stage.made(attempt)) as undone:
            failures += stage.work(attempt)
            undone.extend(failures)
            attempt.worked = True
        attempt.stop_ray()
        end_run(attempt)
        return attempt.result, failures


def _read_or_leave(stage: Stage, attempt: Attempt) -> None:
    """Read the product of a stage that trains; one of another choice is removed, and another attempt at
    the run makes it."""
    if stage.is_missing(attempt):
        stage.prepare(attempt)
        attempt.run.begin_again(stage.name)
    else:
        stage.read(attempt)


def _read_trials(attempt: Attempt) -> None:
    """Read the trials to choose among. Raises UserError, which says what to do, when they are damaged."""
    try:
        attempt.run.check_unaltered(SWEEP.name)
        SWEEP.read(attempt)
    except UserError as error:
        raise UserError(f"{error}; {rebuilt_by(attempt.recipe.run_place)}") from None


def as_recipe(recipe: Recipe | Mapping[str, Any] | str | Path | None) -> Recipe:
    """``recipe`` as a Recipe: a Recipe, a dict of its keys or a YAML file; None is the quickstart.

    Raises UserError when it is not valid.
    """
    if isinstance(recipe, Recipe):
        return recipe
    return parse_recipe(recipe) if isinstance(recipe, Mapping) else load_recipe(recipe)


def trial_session(resources: ResourcesConfig) -> AbstractContextManager[Callable[[], None]]:
    """A Ray session for trials; driver and workers import what trials need while Ray starts.

    The session yields the function that ends it. Raises UserError when Ray cannot be reached.
    """
    return ray_session(resources, _import_stages, workers_import=WORKERS_IMPORT)


@contextmanager
def _attempt(plan: RunPlan, run: RunFolder, begun: Begun) -> Iterator[Attempt]:
    """An attempt at a run. Ray starts on demand; at the end all records are written."""
    recorder = make_recorder(run)
    result = SweepResult(run, selection={} if run.recipe.sweep.enabled else given_config())
    with ExitStack() as stack:
        stops: list[Callable[[], None]] = []

        def start_ray() -> None:
            if not stops:
                stop = stack.enter_context(trial_session(plan.recipe.resources))
                from raysae.cluster.scan.opening import one_service

                stops.extend([stack.enter_context(one_service()), stop])

        def stop_ray() -> None:
            for stop in stops:
                stop()

        try:
            events = Events(ConsoleListener(), recorder)
            if wants_gauges(plan.recipe):
                gauges = GaugeListener(plan.recipe.name)
                stack.callback(gauges.close)
                events.listeners.append(gauges)
            yield Attempt(plan, result, events, start_ray, stop_ray, begun)
        finally:
            result.records_lost, result.records_reason = recorder.close(), recorder.reason
            _note_lost(result)


def _note_lost(result: SweepResult) -> None:
    """Write down how many records were lost, so that the same command sends them."""
    try:
        result.run.records_lost = result.records_lost
    except (OSError, UserError) as error:  # a full disk, a URI that does not answer
        result.broken["status"] = in_one_line(error)


def _import_stages() -> None:
    """Import the modules that the stages need; this takes seconds.

    A module that cannot be imported fails in the stage that needs it.
    """
    for name in HEAVY_MODULES:
        with suppress(Exception):
            importlib.import_module(name)
