"""The stages that look at trials and choice once more: the controls, and the law of scaling."""

from pathlib import Path
from typing import Any

from raysae.errors import UserError
from raysae.identity import Made
from raysae.pipeline.attempt import Attempt
from raysae.pipeline.stage import Stage
from raysae.records import products
from raysae.records.damage import read_object, read_record
from raysae.records.folder import RunFolder
from raysae.records.rows import TrialRow
from raysae.sae.checkpoint import METRICS_FILE


def parameters_of(run: RunFolder, number: int) -> dict[str, Any]:
    """The parameters that were proposed for a committed trial. Raises UserError when they are lost."""
    parameters = read_record(run.trial(number)).get("parameters")
    if not isinstance(parameters, dict):
        raise UserError(
            f"{run.trial(number) / METRICS_FILE}: holds no parameters; the file was damaged or "
            "altered; remove the trial's folder, and the same command trains it again"
        )
    return parameters


class Controls(Stage):
    """Compares the choice with controls: what explains the same rows without a learned dictionary."""

    name = "controls"

    def made(self, attempt: Attempt) -> Made:
        """What makes them: the chosen trial's settings, and which controls are wanted."""
        trial, recipe, plan = _chosen(attempt), attempt.recipe, attempt.plan
        settings: dict[str, Any] = {}
        if trial is not None:
            parameters = parameters_of(attempt.run, trial.trial)
            seeds, digest = products.seeds_of(recipe), attempt.store.digest
            settings = products.trained(
                "controls", digest, plan.sites, seeds, *recipe.with_parameters(parameters)
            )
        number = None if trial is None else trial.trial
        return products.controls(recipe, attempt.store.digest, plan.sites, number, settings)

    def products(self, attempt: Attempt) -> list[Path]:
        """``controls.json``; nothing without a choice, or when no control is wanted."""
        return [attempt.run.controls_file] if wants_controls(attempt) else []

    def prepare(self, attempt: Attempt) -> None:
        """Remove what another choice was compared with."""
        attempt.run.remove(attempt.run.controls_file)

    def work(self, attempt: Attempt) -> list[str]:
        """Make the controls; returns those that failed."""
        trial, run = _chosen(attempt), attempt.run
        attempt.result.controls = {}
        if trial is None or not wants_controls(attempt):
            return []
        from raysae.sweep.controls.fits import Shape
        from raysae.sweep.controls.making import ControlsJob, make_controls

        recipe, store = attempt.recipe, attempt.checked_store
        settings = recipe.with_parameters(parameters_of(run, trial.trial))
        shape = Shape(*settings, tuple(products.seeds_of(recipe)))
        placement = attempt.placement
        attempt.begun.mark()
        job = ControlsJob(run, store, attempt.plan.sites, trial, shape, placement)
        attempt.result.controls, undone = make_controls(job)
        run.write_json(run.controls_file, attempt.result.controls)
        return undone

    def read(self, attempt: Attempt) -> None:
        """Read ``controls.json``; nothing where there is none."""
        wanted = bool(self.products(attempt))
        attempt.result.controls = read_object(attempt.run.controls_file) if wanted else {}


class Scaling(Stage):
    """Fits the law of scaling to the trials."""

    name = "scaling"

    def made(self, attempt: Attempt) -> Made:
        """What makes it: the table of trials."""
        return products.scaling(attempt.run.trials_file)

    def products(self, attempt: Attempt) -> list[Path]:
        """``scaling.json``."""
        return [attempt.run.scaling_file]

    def work(self, attempt: Attempt) -> list[str]:
        """Fit the law, or say why there is none."""
        from raysae.pipeline.scaling_cost import with_costs
        from raysae.sweep.selection.scaling import scaling_of

        run, result = attempt.run, attempt.result
        attempt.begun.mark()
        result.scaling = with_costs(
            scaling_of(result.trials), result.trials, attempt.recipe, attempt.store,
            attempt.plan.sites,
        )  # fmt: skip
        run.write_json(run.scaling_file, result.scaling)
        return []

    def read(self, attempt: Attempt) -> None:
        """Read ``scaling.json``."""
        attempt.result.scaling = read_object(attempt.run.scaling_file)


def wants_controls(attempt: Attempt) -> bool:
    """Whether a trial was chosen, and the recipe wants controls of it."""
    return bool(attempt.recipe.sweep.wanted_controls) and _chosen(attempt) is not None


def _chosen(attempt: Attempt) -> TrialRow | None:
    """The chosen trial; None without one."""
    number = attempt.result.selection["choice"]["trial"]
    return next((row for row in attempt.result.trials if row.trial == number), None)


CONTROLS, SCALING = Controls(), Scaling()
