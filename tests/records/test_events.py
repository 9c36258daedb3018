"""The contract that every listener of a run's events keeps."""

import io

import pytest

from raysae.console import board
from raysae.records.console_listener import ConsoleListener
from raysae.records.events import (
    Began,
    Committed,
    Ended,
    Event,
    Events,
    Failed,
    Item,
    Progressed,
    RunEnded,
    Stopped,
)
from raysae.records.folder import open_run
from raysae.records.mlflow_listener import MLflowRecorder, Recorder

RECORD = {
    "step": 5, "steps": 10, "explained_variance": 0.5, "l0": 2.0, "dead_fraction": 0.0, "loss": 1.0,
    "stability": 0.7, "explained_variance_worst": 0.4,
}  # fmt: skip


@pytest.fixture
def run(tmp_path):
    import raysae

    overrides = [f"runs_dir={tmp_path}/runs", "name=events"]
    with open_run(raysae.load_recipe(None, overrides)) as run:
        yield run


@pytest.fixture(params=["console", "nothing", "mlflow"])
def listener(request, run):
    made = {
        "console": ConsoleListener,
        "nothing": Recorder,
        "mlflow": lambda: MLflowRecorder(run),
    }[request.param]()
    yield made
    if isinstance(made, Recorder):
        assert made.close() == 0, "nothing was lost"


def story(folder):
    """What happens in a run, in order; one trial ends in each way."""
    items = [Item(f"trial/{n}", f"trial {n}", {"sae.k": n}) for n in range(3)]
    folder.mkdir()
    (folder / "cfg.json").write_text("{}")
    record = {
        "metrics": RECORD, "history": [RECORD], "steps": 10, "started": 1.0, "seconds": 2.0,
        "parameters": {"sae.k": 0},
    }  # fmt: skip
    yield Began("Sweep", 3)
    yield from (Progressed(item, RECORD, 0.5) for item in items)
    yield Committed(items[0], record, folder)
    yield Failed(items[1], "out of memory: lower batch_size")
    yield Stopped(items[2], "early stopping, at step 5 of 10")
    yield Ended("Sweep")
    yield RunEnded(RECORD, {"raysae.choice": "0"}, [folder / "cfg.json"])


def test_every_listener_takes_a_whole_run(listener, tmp_path):
    events = Events(listener)
    for event in story(tmp_path / "sae"):
        listener.hear(event)  # raises nothing
    events.emit(Event())


def test_every_listener_takes_events_without_what_came_before(listener, tmp_path):
    """As on a run that is taken up again."""
    for event in list(story(tmp_path / "sae"))[3:]:
        listener.hear(event)


def test_the_console_shows_a_line_for_each_that_ended(tmp_path, capsys):
    listener = ConsoleListener()
    for event in story(tmp_path / "sae"):
        listener.hear(event)
    printed = capsys.readouterr().out
    assert "1/3  trial 0  k 0  EV 0.5000  L0 2.00" in printed
    assert "failed out of memory" in printed and "stopped early stopping" in printed


def test_mlflow_has_a_child_a_trial_with_the_agreement_of_seeds(run, tmp_path):
    from mlflow import MlflowClient

    recorder = MLflowRecorder(run)
    for event in story(tmp_path / "sae"):
        recorder.hear(event)
    assert recorder.close() == 0
    client = MlflowClient(recorder.uri)
    found = client.search_runs([e.experiment_id for e in client.search_experiments()])
    children = {r.info.run_name: r for r in found if "mlflow.parentRunId" in r.data.tags}
    assert {name: child.info.status for name, child in children.items()} == {
        "trial 0": "FINISHED", "trial 1": "FAILED", "trial 2": "KILLED",
    }  # fmt: skip
    assert children["trial 0"].data.metrics["stability"] == 0.7
    assert children["trial 0"].data.metrics["explained_variance_worst"] == 0.4
    assert children["trial 1"].data.tags["raysae.reason"].startswith("out of memory")


class Faulty:
    """A listener that cannot hear."""

    def hear(self, event):
        raise OSError("the pipe is gone")


def test_a_listener_that_fails_is_told_once_and_stops_nothing(tmp_path, monkeypatch):
    printed = io.StringIO()
    monkeypatch.setattr(
        board.console, "_file", printed
    )  # "file" would be put back as the stdout of now
    console = ConsoleListener()
    events = Events(Faulty(), console)
    for event in story(tmp_path / "sae"):
        events.emit(event)
    assert printed.getvalue().count("the pipe is gone") == 1
    assert "3/3" in printed.getvalue()
