"""The page that compares the models of one recipe: ``report/index.html`` beside their runs."""

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from raysae.activations import open_store
from raysae.records.folder import RunFolder
from raysae.records.rows import SiteRow, TrialRow
from raysae.records.tables import read_sites, read_trials
from raysae.report.page import measured, source_line, template
from raysae.storage.files import replacing_folder

TRIALS, DEPTH = "explained_variance_against_l0", "atlas_by_depth"
"""The stems of the pictures."""


@dataclass(frozen=True)
class Compared:
    """What the charts show, by the models' names."""

    chosen: Mapping[str, int | None]
    trials: Mapping[str, list[TrialRow]]
    atlases: Mapping[str, list[SiteRow]]
    depths: Mapping[str, int | None]
    """Numbers of layers; None where it is not known."""


def write_comparison(
    page: Path,
    title: str,
    rows: Sequence[Mapping[str, Any]],
    runs: Mapping[str, RunFolder],
    refused: Mapping[str, str],
    kind: str = "model",
) -> None:
    """Write the page and its PNGs into the folder of ``page``; an earlier page is replaced.

    ``rows`` are the rows of ``models.parquet``, ``runs`` the models' runs by name, ``refused`` the
    reasons why other models could not be run, by name; ``kind`` is ``model``, or ``layer`` for runs of
    the layers of one store. Raises UserError when a store is gone.
    """
    stores = {
        name: open_store(run.recipe.store_place, copy=run.recipe.resources.copy_store)
        for name, run in runs.items()
    }
    shown = [
        {
            **row,
            "source": source_line(stores[row[kind]]),
            "report": os.path.relpath(runs[row[kind]].report_page, page.parent),
        }
        for row in rows
    ]
    with replacing_folder(page.parent) as folder:
        found = Compared(
            {row[kind]: row["trial"] for row in rows},
            _trials(runs),
            _atlases(runs),
            {name: _layers(store.manifest.model) for name, store in stores.items()},
        )
        _draw(found, folder)
        text = template("models.html").render(
            title=title,
            kind=kind,
            rows=shown,
            refused=refused,
            stability=any(row.get("stability") is not None for row in rows),
            charts=_charts(found, kind),
            written=time.strftime("%Y-%m-%d %H:%M"),
        )
        (folder / "index.html").write_text(text, encoding="utf-8")


def _layers(model: dict[str, Any] | None) -> int | None:
    return None if model is None else model["layers"]


def _trials(runs: Mapping[str, RunFolder]) -> dict[str, list[TrialRow]]:
    """The measured trials of each run that has some."""
    trials = {
        name: measured(read_trials(run.trials_file))
        for name, run in runs.items()
        if run.recipe.sweep.enabled
    }
    return {name: found for name, found in trials.items() if found}


def _atlases(runs: Mapping[str, RunFolder]) -> dict[str, list[SiteRow]]:
    """The measured sites of each run that has some."""
    atlases = {
        name: measured(read_sites(run.atlas_metrics_file))
        for name, run in runs.items()
        if run.atlas_metrics_file.exists()
    }
    return {name: found for name, found in atlases.items() if found}


def _draw(found: Compared, folder: Path) -> None:
    from raysae.report import plots  # matplotlib takes a second to import

    if found.trials:
        plots.ev_by_model(found.trials, found.chosen, folder / f"{TRIALS}.png")
    if found.atlases:
        plots.atlas_by_depth(found.atlases, found.depths, folder / f"{DEPTH}.png")


def _charts(found: Compared, kind: str) -> list[Any]:
    """The same as interactive charts."""
    from raysae.report.charts.runs import atlases_of_runs, trials_of_runs

    trials = trials_of_runs(found.trials, found.chosen, kind)
    atlases = atlases_of_runs(found.atlases, found.depths, kind)
    return [
        replace(chart, file=file)
        for chart, file in ((trials, TRIALS), (atlases, DEPTH))
        if chart is not None
    ]
