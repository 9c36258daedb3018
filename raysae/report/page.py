"""``report/index.html``: one self-contained page, computed from the records."""

import base64
import os
import shutil
import statistics
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined

from raysae.activations import Site, Store
from raysae.activations.health import HEADS, StoreHealth, health_of_store
from raysae.browser.pages import FEATURES, Heading, pages_beside_report
from raysae.console.board import console, seconds
from raysae.console.shell import look_at_records
from raysae.metrics import PAGE, labels
from raysae.printable import printable, shortened
from raysae.records.choice import read_choice
from raysae.records.damage import read_object, read_record
from raysae.records.environment import read_environment
from raysae.records.folder import RunFolder
from raysae.records.mlflow_listener import tracking_uri
from raysae.records.rows import SPARSITY_LABELS, Row, SiteRow, TrialRow
from raysae.records.status import ENVIRONMENT_FILE, STAGES
from raysae.records.tables import read_sites, read_trials
from raysae.redaction import redacted
from raysae.report.analysis_section import cell, not_run, phase_sections
from raysae.report.atlas_section import (
    AtlasSection,
    draw_atlas,
    feature_links,
    figure_cells,
    pictures,
)
from raysae.report.charts import embedding
from raysae.report.controls_section import ControlsSection
from raysae.report.importance import Importance, importance_of
from raysae.report.repeat_section import steps_of
from raysae.report.resources_section import resources_of

if TYPE_CHECKING:  # matplotlib and Bokeh take a second to import
    from raysae.report.page_charts import Groups
    from raysae.report.site_curves import Curve

SomeRow = TypeVar("SomeRow", bound=Row)
PNG = "data:image/png;base64,"
LONGEST_NAME = 40
"""Characters of a model's or a data set's name in the line at the foot of plots, at most."""
SUMMARISED = ("explained_variance", "l0", "dead_fraction")
"""The metrics that the page summarises over the whole atlas."""


def write_report(run: RunFolder, store: Store, selection: Mapping[str, Any] | None = None) -> Path:
    """Write the page and its pictures, in place of an earlier page; returns the page's path.

    ``selection`` is the choice; by default that of ``selection.json``. The pages of a feature browser
    that lie beside an earlier page stay.
    """
    trials = read_trials(run.trials_file) if run.recipe.sweep.enabled else []
    atlas = read_sites(run.atlas_metrics_file)
    selection = selection or read_choice(run)
    with run.replacing_folder(run.report_page.parent) as folder:
        heading = Heading(run.recipe.name, source_line(store))
        if not pages_beside_report(run.path, folder, heading, console.print):
            _keep_features(run.report_page.parent, folder)
        plots = _plots(run, store, trials, atlas, selection, folder)
        importance = _importance(run, trials)
        charts = _charts(run, trials, atlas, selection, importance)
        page = template("page.html").render(
            **_provenance(run, store),
            **_of_the_sweep(run, trials, selection),
            importance=importance,
            atlas=atlas,
            section=_atlas_section(atlas, charts, plots, folder),
            atlas_summary=_atlas_summary(atlas),
            selection=selection,
            chosen=_chosen(trials, selection),
            tracking_uri=tracking_uri(run) if run.recipe.records.mlflow else None,
            look_at_records=look_at_records,
            health=_health(run, store, atlas),
            heads=HEADS,
            analysis=_analysis(run),
            not_run=not_run(run.path),
            features=(folder / FEATURES / "index.html").is_file(),
            section_charts=charts,
            charts=[chart for group in charts.values() for chart in group],
            resources=resources_of(run, _store_bytes(store), store.d_in, trials, atlas),
        )
        (folder / "index.html").write_text(page, encoding="utf-8")
    return run.report_page


def _provenance(run: RunFolder, store: Store) -> dict[str, Any]:
    """What the page says of the run, its data and how to repeat it."""
    environment = read_environment(run.path / ENVIRONMENT_FILE)
    return {
        "title": run.recipe.name,
        "run": run,
        "recipe": run.recipe,
        "store": store,
        "manifest": store.manifest,
        "environment": environment,
        "site": ", ".join(map(str, _swept(run, store))),
        "written": time.strftime("%Y-%m-%d %H:%M"),
        "source": source_line(store),
        "given": None if run.recipe.sweep.enabled else _given(run),
        "steps": steps_of(run, store, environment, run.sweet_spot.is_dir()),
    }


def _of_the_sweep(
    run: RunFolder, trials: list[TrialRow], selection: Mapping[str, Any]
) -> dict[str, Any]:
    """What the page says of the trials, the controls and the law of scaling."""
    searched = _searched(run, trials)
    return {
        "trials": trials,
        "finished": [row for row in trials if row.done],
        "measured": measured(trials),
        "metrics": labels(PAGE, trials),
        "figure_cells": figure_cells,
        "searched": searched,
        "controls": ControlsSection(_json(run.controls_file)),
        "scaling": _json(run.scaling_file),
    }


def _importance(run: RunFolder, trials: list[TrialRow]) -> Importance:
    rows = measured(trials)
    return importance_of(rows, _searched(run, rows)) if rows else Importance()


def _charts(
    run: RunFolder, trials: list[TrialRow], atlas: list[SiteRow], selection: Mapping[str, Any],
    importance: Importance,
) -> "Groups":  # fmt: skip
    """The interactive charts by section."""
    from raysae.report.page_charts import atlas_charts, other_charts, sweep_charts

    rows = measured(trials)
    controls = ControlsSection(_json(run.controls_file))
    times = {stage: run.seconds(stage) for stage in STAGES if stage != "report"}
    groups = other_charts(
        controls, _json(run.scaling_file), {name: took for name, took in times.items() if took}
    )
    if trials:
        curves = _trial_curves(run, rows)
        searched = _searched(run, rows)
        groups |= sweep_charts(trials, rows, curves, searched, selection, importance)
    return {"sweep": [], "choice": [], **groups, **atlas_charts(run, atlas)}


def _atlas_section(
    atlas: list[SiteRow], charts: "Groups", plots: Mapping[str, str], folder: Path
) -> AtlasSection:
    """The section of the atlas, with the pictures that no chart shows."""
    drawn = {chart.file for chart in charts["atlas"]}
    rest = {name: uri for name, uri in plots.items() if name not in drawn}
    return AtlasSection(
        atlas, pictures(rest, folder), charts["atlas"], feature_links(atlas, folder)
    )


def _keep_features(old: Path, new: Path) -> None:
    """Take the feature browser that lies beside the old page along, without copying its data."""
    if (old / FEATURES).is_dir() and not (old / FEATURES).is_symlink():
        shutil.copytree(old / FEATURES, new / FEATURES, copy_function=_link_or_copy)


def _link_or_copy(old: str, new: str) -> None:
    try:
        os.link(old, new)
    except OSError:  # the file system has no links
        shutil.copy2(old, new)


def _store_bytes(store: Store) -> int:
    """The size of the files of the store's activations."""
    return sum(shard.bytes for site in store.manifest.sites for shard in site.shards)


def _analysis(run: RunFolder) -> list[dict[str, Any]]:
    """The sections of the analysis, with their plots as data URIs."""
    return [
        {**vars(phase), "pictures": {name: _data_uri(file) for name, file in phase.plots.items()}}
        for phase in phase_sections(run.path)
    ]


def _json(file: Path) -> dict[str, Any]:
    """The content of a file of the run; empty where there is none."""
    return read_object(file) if file.is_file() else {}


def _health(run: RunFolder, store: Store, atlas: list[SiteRow]) -> StoreHealth:
    """What is unusual about the rows at the sites of the sweep and of the atlas."""
    swept = _swept(run, store)
    return health_of_store(store, sorted({*swept, *(row.site for row in atlas)}))


def _swept(run: RunFolder, store: Store) -> list[Site]:
    """The sites of the sweep; none without one."""
    if not run.recipe.sweep.enabled:
        return []
    return run.recipe.sites_of(store.layers, store.positions, store.hookpoints)


def _searched(run: RunFolder, trials: list[TrialRow]) -> list[str]:
    """The settings in the table of trials: dictionary size, sparsity, and what was searched."""
    sparsity = [f"sae.{key}" for key in SPARSITY_LABELS if any(f"sae.{key}" in r for r in trials)]
    listed = [key for config in run.recipe.sweep.configs for key in config]
    space = run.recipe.sweep.space if not listed else {}
    return list(dict.fromkeys(["sae.d_sae", *sparsity, *space, *listed]))


def _given(run: RunFolder) -> dict[str, Any]:
    """The settings of the SAE that the recipe of a run without a search gives."""
    sae, _ = run.recipe.with_parameters({})
    return asdict(sae)


def source_line(store: Store) -> str:
    """What the data is, in one line for the foot of every plot."""
    manifest = store.manifest
    tail = f"store {store.digest[:12]}"
    if manifest.provenance == "synthetic":
        return f"SYNTHETIC data, no model · {tail}"
    if manifest.model is None:
        return f"imported activations · {tail}"
    dataset = manifest.dataset["id"] if manifest.dataset else "?"
    names = [
        shortened(printable(redacted(str(name))), LONGEST_NAME)
        for name in (manifest.model["id"], dataset)
    ]
    return f"{names[0]} · {manifest.hookpoint} · {names[1]} · {tail}"


def _plots(
    run: RunFolder, store: Store, trials: list[TrialRow], atlas: list[SiteRow],
    selection: Mapping[str, Any], folder: Path,
) -> dict[str, str]:  # fmt: skip
    """Draw the plots that have data; the name of each, with its PNG as a data URI."""
    from raysae.report import plots  # matplotlib takes a second to import
    from raysae.report.site_curves import sampled

    finished, source = measured(trials), source_line(store)
    if finished:
        chosen = selection["choice"]["trial"]
        plots.ev_against_l0(finished, chosen, source, folder / "ev_against_l0.png")
        shown = sampled(finished)
        histories = {curve.name: list(curve.history) for curve in _trial_curves(run, finished)}
        sizes = [row.d_sae for row in shown]
        plots.training_curves(histories, sizes, source, folder / "training_curves.png")
        scaling = _json(run.scaling_file)
        if scaling.get("points"):
            plots.fvu_by_size(scaling, source, folder / "scaling.png")
    if measured(atlas):
        draw_atlas(run, atlas, source, folder)
    return embedded(folder)


def measured(rows: list[SomeRow]) -> list[SomeRow]:
    """Rows that ended with a defined explained variance."""
    return [row for row in rows if row.measured]


def _trial_curves(run: RunFolder, rows: list[TrialRow]) -> "list[Curve]":
    """The training curves that are shown of the trials."""
    from raysae.report.site_curves import Curve, sampled

    return [
        Curve(f"{row.trial}: {row.config}", read_record(run.trial(row.trial))["history"])
        for row in sampled(rows)
    ]


def embedded(folder: Path) -> dict[str, str]:
    """The folder's PNGs by name, as data URIs."""
    return {file.stem: _data_uri(file) for file in sorted(folder.glob("*.png"))}


def _data_uri(file: Path) -> str:
    return f"{PNG}{base64.b64encode(file.read_bytes()).decode()}"


def _chosen(trials: list[TrialRow], selection: Mapping[str, Any]) -> TrialRow | None:
    number = selection["choice"]["trial"]
    return next((row for row in trials if row.trial == number), None)


def _atlas_summary(atlas: list[SiteRow]) -> dict[str, dict[str, Any]]:
    """Each metric's mean and standard deviation over the sites, and its lowest and highest site."""
    rows, summary = measured(atlas), {}
    if rows:
        for metric in SUMMARISED:
            values = [row[metric] for row in rows]
            summary[metric] = {
                "mean": statistics.fmean(values),
                "sd": statistics.stdev(values) if len(values) > 1 else 0.0,
                "lowest": min(rows, key=lambda row: row[metric]),
                "highest": max(rows, key=lambda row: row[metric]),
            }
    return summary


def template(name: str) -> Any:
    """The page template ``name``, with the filters that all templates use."""
    environment = Environment(
        loader=PackageLoader("raysae.report"), autoescape=True, undefined=StrictUndefined,
        finalize=_shown, trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters["seconds"] = lambda value: "" if value is None else seconds(value)
    environment.filters["fixed"] = _fixed
    environment.filters["urlencode"] = lambda path: quote(str(path), errors="surrogateescape")
    environment.filters["percent"] = lambda value: "" if value is None else f"{value:.1%}"
    environment.filters["cell"] = cell
    environment.filters["size"] = lambda value: f"{value / 2**20:,.1f} MiB"
    environment.filters["chart_id"] = embedding.chart_id
    environment.filters["embedded_charts"] = embedding.embedded_charts
    environment.globals["library"] = embedding.library
    environment.filters["count"] = lambda value: "" if value is None else f"{value:,}"
    return environment.get_template(name)


def _shown(value: Any) -> Any:
    """The value as the page shows it: a text or a path with its secrets hidden and its control
    characters as escapes; pictures as they are."""
    if not isinstance(value, str | Path) or hasattr(value, "__html__"):
        return value
    text = str(value)
    return value if text.startswith(PNG) else printable(redacted(text), lines=True)


def _fixed(value: float | None, places: int = 4) -> str:
    return "" if value is None else f"{value:.{places}f}"
