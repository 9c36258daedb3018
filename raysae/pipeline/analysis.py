"""The analysis as a stage of a run, and on its own over any atlas."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from raysae.analysis import engine
from raysae.analysis.registry import (
    check_options,
    known_phases,
    phases_named,
    quick_phases,
    settings_of,
)
from raysae.analysis.results import ANALYSIS, read_result
from raysae.analysis.subject import Subject
from raysae.config import Recipe
from raysae.console.board import console
from raysae.identity import Made, flat
from raysae.pipeline.attempt import Attempt
from raysae.pipeline.stage import AddedStage
from raysae.records.run_files import RunFiles
from raysae.report.page import source_line
from raysae.storage.files import sha256_of

Options = Mapping[str, Mapping[str, Any]]
PHASES_FILE = "phases.json"
"""In the folder of the analysis: the phases without a result, and why."""


def check_analysis(recipe: Recipe) -> None:
    """Raise UserError when the recipe names an unknown phase, or an option that is not valid."""
    wanted = recipe.analyze.phases
    phases = phases_named(quick_phases() if wanted is None else wanted)
    check_options(recipe.analyze.options, phases if wanted else list(known_phases().values()))


def subject_of(attempt: Attempt) -> Subject:
    """The run's atlas as the subject of an analysis."""
    recipe, store = attempt.recipe, attempt.store
    return Subject(
        place=str(recipe.run_uri or attempt.run.path),
        files=attempt.run.for_workers(),
        store_place=recipe.store_uri or str(store.opened_by),
        seed=recipe.seed,
    )


class Analyze(AddedStage):
    """Runs the phases of the analysis on the atlas."""

    name = "analyze"

    def __init__(self, given: Sequence[str] = (), asked: bool = False):
        self.given, self.asked = tuple(given), asked
        """Phases that are run in place of the recipe's, and whether each was asked for by name."""

    def is_asked_for(self, attempt: Attempt) -> bool:
        """Whether phases are named, by the command or by the recipe."""
        return bool(self.given) or attempt.recipe.analyze.phases is not None

    def phases(self, attempt: Attempt) -> list[str]:
        """The names of the phases to run."""
        if self.given:
            return list(self.given)
        if not attempt.recipe.atlas.enabled or not attempt.run.atlas_metrics_file.is_file():
            return []
        wanted = attempt.recipe.analyze.phases
        return quick_phases() if wanted is None else list(wanted)

    def made(self, attempt: Attempt) -> Made:
        """The phases with their options and generations, the store, and the table of the atlas."""
        names = self.phases(attempt)
        if not names:
            return {"phases": []}
        options = attempt.recipe.analyze.options
        settings = {
            phase.name: {
                "generation": phase.generation,
                **settings_of(phase, options.get(phase.name, {})).model_dump(mode="json"),
            }
            for phase in phases_named(names)
        }
        table = attempt.run.atlas_metrics_file
        return {
            "phases": names, "store": attempt.store.digest, **flat(settings),
            "atlas": sha256_of(table) if table.is_file() else "",
        }  # fmt: skip

    def products(self, attempt: Attempt) -> list[Path]:
        """None: each phase looks after its own files."""
        return []

    def read(self, attempt: Attempt) -> None:
        """Read nothing: no later step but the page uses the results."""

    def work(self, attempt: Attempt) -> list[str]:
        """Run what is missing of the phases; returns what failed, a line each."""
        names = self.phases(attempt)
        if not names:
            return []
        named = not self.given and attempt.recipe.analyze.phases is not None
        subject, options = subject_of(attempt), attempt.recipe.analyze.options
        planned, skipped = engine.plan(subject, phases_named(names), options, self.asked or named)
        attempt.begun.mark()
        found = engine.run(
            subject, planned, lambda: attempt.placement, attempt.recipe.resources, attempt.events,
            source_line(attempt.store),
        )  # fmt: skip
        note_phases(attempt.run, skipped)
        return found.failures


def note_phases(files: RunFiles, skipped: Mapping[str, str]) -> None:
    """Write down which phases have no result, and why, for the page."""
    reasons = {
        name: skipped.get(name, "") for name in known_phases() if read_result(files, name) is None
    }
    files.write_json(files.path / ANALYSIS / PHASES_FILE, {"not_run": reasons})


def options_of(pairs: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Options from ``PHASE.KEY=VALUE`` words. Raises UserError on another form or an unknown phase."""
    import yaml

    from raysae.config.overrides import overridden, split_override
    from raysae.errors import UserError

    options: dict[str, Any] = {}
    for pair in pairs:
        key, value = split_override(pair)
        if "." not in key:
            raise UserError(f"{pair}: expected PHASE.KEY=VALUE, such as loss.sequences=500")
        try:
            options = overridden(options, {key: yaml.safe_load(value)})
        except yaml.YAMLError:
            raise UserError(f"{pair}: its value is no YAML; quote it") from None
    phases_named(options)
    return options


def analyze_alone(subject: Subject, names: Sequence[str], options: Options) -> engine.Analysis:
    """Analyse an atlas that belongs to no run; results go to the subject's own folder.

    Raises UserError when a phase lacks what it needs.
    """
    from raysae.cluster.placement import Placement, place
    from raysae.cluster.session import ray_session
    from raysae.config import ResourcesConfig
    from raysae.records.console_listener import ConsoleListener
    from raysae.records.events import Events

    resources = ResourcesConfig()
    planned, _ = engine.plan(subject, phases_named(names), options, asked=True)
    source = f"SAEs of {subject.atlas.folder.name}"
    events = Events(ConsoleListener())
    if engine.is_done(subject, planned):
        return engine.run(subject, planned, _no_ray, resources, events, source)
    with ray_session(resources):
        found: Placement | None = None

        def placement() -> Placement:
            nonlocal found
            found = found or place(resources)
            return found

        return engine.run(subject, planned, placement, resources, events, source)


def _no_ray() -> Any:
    raise AssertionError("everything is there already")


def as_override(options: Options) -> list[str]:
    """The override that gives a recipe these options."""
    return [f"analyze.options={json.dumps(options)}"] if options else []


def tell_results(files: RunFiles, names: Sequence[str]) -> None:
    """Print where the results are, and each one's line."""
    for name in names:
        found = read_result(files, name)
        if found is not None:
            console.print(f"{found['title']}: {found['brief'] or 'done'}")
    console.print(f"Results: {files.path / ANALYSIS}")
