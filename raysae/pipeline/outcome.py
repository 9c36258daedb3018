"""The events that end a run, or that tell a finished run again."""

from collections.abc import Mapping
from statistics import fmean
from typing import Any

from raysae.metrics import MLFLOW, floats
from raysae.pipeline.result import SweepResult
from raysae.records.damage import read_record
from raysae.records.events import Committed, Events, Failed, Result, RunEnded, Stopped
from raysae.records.rows import TrialRow
from raysae.sites import Site


def emit_outcome(result: SweepResult, events: Events) -> None:
    """Emit the event that ends a run, with the choice and the run's files."""
    run, choice = result.run, result.selection["choice"]
    chosen = [row for row in result.trials if row.trial == choice["trial"]]
    tags = {"raysae.choice": str(choice["trial"]), "raysae.reason": choice["reason"]}
    files = [run.path / "config.yaml", run.path / "environment.json", run.trials_file]
    files += [run.selection_file, run.report_page.parent, run.atlas_metrics_file]
    files += [run.controls_file, run.scaling_file]
    figures = {**(chosen[0] if chosen else {}), **_control_figures(result.controls)}
    if "words" in result.controls:
        tags["raysae.controls"] = result.controls["words"]
    there = [file for file in files if file.exists()]
    events.emit(RunEnded(figures, tags, there, [*_chosen(result, chosen), *_atlas(result)]))


def _chosen(result: SweepResult, chosen: list[TrialRow]) -> list[Result]:
    """The chosen SAE, with its trial's settings and figures; none without a choice."""
    return [
        Result(
            f"{result.run.recipe.name} sweet spot", row.settings, row.figures,
            result.run.trial_item(row.trial, {}).key,
        )
        for row in chosen
    ]  # fmt: skip


def _atlas(result: SweepResult) -> list[Result]:
    """The atlas with its means over the sites, named ``atlas_...``; none where no site was trained."""
    sites = [row for row in result.atlas if row.measured]
    if not sites:
        return []
    each = [floats(row, MLFLOW) for row in sites]
    names = set.intersection(*(set(one) for one in each))
    means = {f"atlas_{name}": fmean(one[name] for one in each) for name in sorted(names)}
    least = {"atlas_explained_variance_min": min(row.explained_variance for row in sites)}
    counted = {"sites": len(sites), "layers": len({row.site.layer for row in sites})}
    return [Result(f"{result.run.recipe.name} atlas", counted, {**means, **least})]


def _control_figures(controls: Mapping[str, Any]) -> dict[str, Any]:
    """The figures of the controls, by the names of their metrics."""
    made = controls.get("controls", {})
    found = {
        f"control_{name}_explained_variance": one.get("explained_variance")
        for name, one in made.items()
    }
    return {**found, "control_pca_components": made.get("pca", {}).get("components_to_reach")}


def emit_again(result: SweepResult, events: Events) -> None:
    """Emit the events of a finished run again, from its files, for records that MLflow did not get."""
    run = result.run
    for row in result.trials:
        record = run.record(run.trial(row.trial))
        item = run.trial_item(row.trial, {} if record is None else record["parameters"])
        if record is None:
            ended = Stopped if row.state == "stopped" else Failed
            events.emit(ended(item, row.reason))
        else:
            events.emit(Committed(item, record, run.trial(row.trial)))
    for folder in run.committed_sites():
        site = Site.of_folder(folder.relative_to(run.path / "atlas").as_posix())
        events.emit(Committed(run.site_item(site), read_record(folder), folder))
    emit_outcome(result, events)
