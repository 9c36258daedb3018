"""The events that end a run, or that tell a finished run again."""

from collections.abc import Mapping
from typing import Any

from raysae.pipeline.result import SweepResult
from raysae.records.damage import read_record
from raysae.records.events import Committed, Events, Failed, RunEnded, Stopped
from raysae.sites import Site


def emit_outcome(result: SweepResult, events: Events) -> None:
    """Emit the event that ends a run, with the choice and the run's files."""
    run, choice = result.run, result.selection["choice"]
    chosen = [row for row in result.trials if row.trial == choice["trial"]]
    tags = {"raysae.choice": str(choice["trial"]), "raysae.reason": choice["reason"]}
    files = [run.path / "config.yaml", run.path / "environment.json", run.trials_file]
    files += [run.selection_file, run.report_page.parent, run.sweet_spot, run.atlas_metrics_file]
    files += [run.controls_file, run.scaling_file]
    figures = {**(chosen[0] if chosen else {}), **_control_figures(result.controls)}
    if "words" in result.controls:
        tags["raysae.controls"] = result.controls["words"]
    events.emit(RunEnded(figures, tags, [file for file in files if file.exists()]))


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
