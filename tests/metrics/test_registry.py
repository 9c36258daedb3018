"""One vocabulary: each metric is defined once, and shown wherever its entry says."""

import json
import math
import re

import pytest

import raysae
from raysae.console.board import set_log
from raysae.metrics import (
    CANDIDATES,
    CONSOLE,
    LOG,
    MLFLOW,
    PAGE,
    TABLE,
    Metric,
    figures,
    floats,
    labels,
    merged,
    objectives,
    register,
    registered,
)
from raysae.metrics.definitions import seconds
from raysae.metrics.reference import metrics_markdown
from raysae.metrics.registry import unregister
from raysae.pipeline.sweep_command import main
from raysae.records.tables import read_table


def test_each_metric_says_what_it_is():
    for name, metric in registered().items():
        assert metric.meaning and metric.name == name
        assert metric.range[0] < metric.range[1]
        assert metric.direction is not None or not metric.objective, name
        assert metric.prometheus_name.replace("_", "").isalnum()


def test_a_name_is_taken_once_and_places_are_known():
    with pytest.raises(ValueError, match="registered already"):
        register(Metric("l0", "again"))
    with pytest.raises(ValueError, match="nowhere"):
        register(Metric("other", "elsewhere", shown=frozenset({"nowhere"})))


def test_the_reference_has_every_metric():
    listed = re.findall(r"^\| `(\w+)` \|", metrics_markdown(), re.MULTILINE)
    assert listed == list(registered())


def test_what_a_search_may_optimise_is_what_the_registry_says():
    for name in objectives():
        direction = registered()[name].direction
        sweep = {"objectives": [{"metric": name, "goal": direction}], "seeds_per_trial": 2}
        sites = [{"layer": 0, "position": 0}, {"layer": 1, "position": 0}]
        assert raysae.Recipe.model_validate({"sweep": {**sweep, "sites": sites}})
    unknown = {"sweep": {"objectives": [{"metric": "explained_varianc", "goal": "maximize"}]}}
    with pytest.raises(ValueError, match="did you mean explained_variance"):
        raysae.Recipe.model_validate(unknown)


def test_several_trainings_are_one_record():
    one = {"l0": 2.0, "tokens": 100, "degenerate": False, "mse": 1.0}
    other = {"l0": 4.0, "tokens": 100, "degenerate": True, "mse": None}
    both = merged([one, other])
    assert both["l0"] == 3.0 and both["tokens"] == 100 and both["degenerate"] is True
    assert math.isnan(both["mse"])


def test_figures_are_written_for_people():
    record = {"explained_variance": 0.98765, "l0": 3.14159, "dead_fraction": math.nan}
    shown = figures(record, CONSOLE)
    assert (shown["EV"], shown["L0"], shown["dead"]) == ("0.9877", "3.14", "")
    assert [seconds(t) for t in (8.44, 200, 7500)] == ["8.4 s", "3 min 20 s", "2 h 05 min"]


def test_figures_of_ordinary_rows_are_shown_where_there_are_sinks():
    usual = {"explained_variance": 0.9, "explained_variance_ordinary": 0.9, "sink_fraction": 0.0}
    spoiled = {**usual, "explained_variance_ordinary": 0.7, "sink_fraction": 0.01}
    for place in (CONSOLE, MLFLOW, PAGE):
        named = [
            [metric.name for metric in labels(place, rows)] for rows in ([usual], [usual, spoiled])
        ]
        assert not {"explained_variance_ordinary", "sink_fraction"} & set(named[0])
        assert {"explained_variance_ordinary", "sink_fraction"} <= set(named[1])
    assert "sink_fraction" not in floats(usual, MLFLOW)
    assert floats(spoiled, MLFLOW)["explained_variance_ordinary"] == 0.7
    assert "EV, no sinks" not in figures(usual, CONSOLE)
    assert figures(spoiled, CONSOLE)["EV, no sinks"] == "0.7000"


@pytest.fixture
def extra_metric(monkeypatch):
    """A metric that raysae does not have, measured by every training in this process."""
    everywhere = frozenset({CONSOLE, LOG, MLFLOW, TABLE, CANDIDATES, PAGE})
    register(
        Metric(
            "squared_l0", "the square of l0", direction="minimize", shown=everywhere,
            objective=True, label="L0²", form="{:.1f}",
        )
    )  # fmt: skip
    yield "squared_l0"
    unregister("squared_l0")


def test_a_metric_that_is_added_appears_everywhere(small_run, tmp_path, extra_metric, capsys):
    """The figures are added to what a finished run has committed; the rest is the run's own way."""
    import shutil

    from mlflow import MlflowClient

    runs = tmp_path / "runs"
    shutil.copytree(small_run.folder, runs / "small")
    for marker in runs.glob("small/trials/*/metrics.json"):
        record = json.loads(marker.read_text())
        record["metrics"][extra_metric] = record["metrics"]["l0"] ** 2
        marker.write_text(json.dumps(record))
    (runs / "small" / "trials.parquet").unlink()
    capsys.readouterr()
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    arguments = ["--resume", str(runs / "small"), f"records.tracking_uri={uri}"]
    assert main([*arguments, "--log", "json"]) == 0
    set_log("auto")
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line[0] == "{"]
    assert any(event.get(extra_metric) for event in events), "the log"
    rows = read_table(runs / "small" / "trials.parquet")
    assert all(row[extra_metric] == row["l0"] ** 2 for row in rows), "the table"
    selection = json.loads((runs / "small" / "selection.json").read_text())
    assert all(extra_metric in candidate for candidate in selection["candidates"])
    assert "L0²" in (runs / "small" / "report/index.html").read_text(), "the page"
    client = MlflowClient(uri)
    found = client.search_runs([e.experiment_id for e in client.search_experiments()])
    assert sum(extra_metric in run.data.metrics for run in found) >= len(rows), "MLflow"
    with pytest.raises(SystemExit):
        main(["--help-keys", "metrics"])
    assert "squared_l0: the square of l0" in capsys.readouterr().out
