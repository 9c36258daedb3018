"""One page that compares finished runs: their figures, their charts, and where their recipes differ."""

import os
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raysae.activations import open_store
from raysae.identity import flat
from raysae.records.choice import read_choice
from raysae.records.environment import read_environment
from raysae.records.folder import RunFolder
from raysae.records.rows import SiteRow, TrialRow
from raysae.records.status import ENVIRONMENT_FILE, STAGES
from raysae.records.tables import read_sites, read_trials
from raysae.report.page import measured, source_line, template
from raysae.storage.files import write_text

PAGE = "comparison.html"
PLACES = ("name", "runs_dir")
"""Keys of a recipe that differ between any two runs and say nothing of them."""


@dataclass(frozen=True)
class ComparedRun:
    """What the page says of one run."""

    label: str
    run: RunFolder
    source: str
    digest: str
    raysae: str
    trials: list[TrialRow]
    atlas: list[SiteRow]
    selection: Mapping[str, Any]

    @property
    def chosen(self) -> TrialRow | None:
        """The chosen trial."""
        number = self.selection["choice"]["trial"]
        return next((row for row in self.trials if row.trial == number), None)

    @property
    def seconds(self) -> float:
        """The time of all stages that have ended."""
        return sum(self.run.seconds(stage) or 0.0 for stage in STAGES)

    @property
    def spread(self) -> tuple[float, float, float] | None:
        """Mean, lowest and highest explained variance of the atlas."""
        values = [row.explained_variance for row in measured(self.atlas)]
        return (statistics.fmean(values), min(values), max(values)) if values else None


def write_runs_page(runs: Sequence[RunFolder], page: Path) -> Path:
    """Write the page that compares ``runs``, in place of an earlier one; returns its path.

    Raises UserError when a record is missing or damaged, or a store is gone.
    """
    compared = [_compared(run, label) for run, label in zip(runs, _labels(runs), strict=True)]
    charts = _charts(compared)
    text = template("runs.html").render(
        title=f"{len(compared)} runs compared",
        runs=compared,
        links={one.label: os.path.relpath(one.run.report_page, page.parent) for one in compared},
        differences=differences_of([one.run.recipe.dump() for one in compared]),
        one_store=len({one.digest for one in compared}) == 1,
        stability=any(one.chosen and one.chosen.stability is not None for one in compared),
        charts=charts,
        written=time.strftime("%Y-%m-%d %H:%M"),
    )
    page.parent.mkdir(parents=True, exist_ok=True)
    write_text(page, text)
    return page


def differences_of(recipes: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[str]]]:
    """The dotted keys at which the recipes differ, each with their values as text."""
    flats = [flat(recipe) for recipe in recipes]
    keys = dict.fromkeys(key for one in flats for key in one if key not in PLACES)
    found = [
        (key, ["" if one.get(key) is None else str(one[key]) for one in flats]) for key in keys
    ]
    return [(key, values) for key, values in found if len({*values}) > 1]


def _labels(runs: Sequence[RunFolder]) -> list[str]:
    """The runs' names; their places, where two have the same name."""
    names = [run.recipe.name for run in runs]
    return names if len({*names}) == len(names) else [str(run.recipe.run_place) for run in runs]


def _compared(run: RunFolder, label: str) -> ComparedRun:
    store = open_store(run.recipe.store_place, copy=run.recipe.resources.copy_store)
    return ComparedRun(
        label=label,
        run=run,
        source=source_line(store),
        digest=store.digest,
        raysae=read_environment(run.path / ENVIRONMENT_FILE)["raysae"],
        trials=read_trials(run.trials_file) if run.recipe.sweep.enabled else [],
        atlas=read_sites(run.atlas_metrics_file),
        selection=read_choice(run),
    )


def _charts(runs: Sequence[ComparedRun]) -> list[Any]:
    from raysae.report.charts.runs import atlases_of_runs, sites_of_two, trials_of_runs

    atlases = {one.label: measured(one.atlas) for one in runs}
    charts = [
        trials_of_runs(
            {one.label: measured(one.trials) for one in runs},
            {one.label: one.selection["choice"]["trial"] for one in runs},
        ),
        atlases_of_runs(atlases),
        sites_of_two(atlases),
    ]
    return [chart for chart in charts if chart is not None]
