"""The page that compares the models of one recipe: ``report/index.html`` beside their runs."""

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from raysae.activations import open_store
from raysae.records.folder import RunFolder
from raysae.records.tables import read_sites, read_trials
from raysae.report.page import embedded, measured, source_line, template
from raysae.storage.files import replacing_folder


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
        _draw(
            {row[kind]: row["trial"] for row in rows},
            runs,
            {name: _layers(store.manifest.model) for name, store in stores.items()},
            folder,
        )
        text = template("models.html").render(
            title=title,
            kind=kind,
            rows=shown,
            refused=refused,
            stability=any(row.get("stability") is not None for row in rows),
            plots=embedded(folder),
            written=time.strftime("%Y-%m-%d %H:%M"),
        )
        (folder / "index.html").write_text(text, encoding="utf-8")


def _layers(model: dict[str, Any] | None) -> int | None:
    return None if model is None else model["layers"]


def _draw(
    chosen: Mapping[str, int | None],
    runs: Mapping[str, RunFolder],
    depths: Mapping[str, int | None],
    folder: Path,
) -> None:
    from raysae.report import plots  # matplotlib takes a second to import

    trials = {
        name: measured(read_trials(run.trials_file))
        for name, run in runs.items()
        if run.recipe.sweep.enabled
    }
    trials = {name: found for name, found in trials.items() if found}
    if trials:
        plots.ev_by_model(trials, chosen, folder / "explained_variance_against_l0.png")
    atlases = {
        name: measured(read_sites(run.atlas_metrics_file))
        for name, run in runs.items()
        if run.atlas_metrics_file.exists()
    }
    atlases = {name: found for name, found in atlases.items() if found}
    if atlases:
        plots.atlas_by_depth(atlases, depths, folder / "atlas_by_depth.png")
