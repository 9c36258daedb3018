"""Saved views of MLflow's page: tags of the experiment, kept up to date, and opened by their links."""

import json
import socket

import pytest
from mlflow import MlflowClient

import raysae
from raysae.records.events import Committed, Failed, Item, RunEnded
from raysae.records.folder import open_run
from raysae.records.mlflow_listener import MLflowRecorder
from raysae.records.mlflow_views import SHARED, VIEWS, links, view_tags
from scripts.chromium import NAMES, chromium
from scripts.mlflow_server import MLflowServer
from tests.programs import needed

FIGURES = {"explained_variance": 0.9, "l0": 8.0, "dead_fraction": 0.1}
RECORD = {
    "metrics": FIGURES, "history": [{**FIGURES, "step": 5}], "steps": 10, "started": 1.0,
    "seconds": 2.0, "parameters": {"sae.k": 8, "sae.d_sae": 64}, "made": {"sae.variant": "topk"},
}  # fmt: skip


@pytest.fixture
def recorded(tmp_path):
    """A run's records in a SQLite file: two trials, one that failed, two sites."""
    sae = tmp_path / "sae"
    sae.mkdir()
    (sae / "cfg.json").write_text("{}")
    with open_run(raysae.load_recipe(None, [f"runs_dir={tmp_path}/runs", "name=seen"])) as run:
        recorder = MLflowRecorder(run)
        for number in range(2):
            recorder.hear(Committed(Item(f"trial/{number}", f"trial {number}"), RECORD, sae))
            site = {**RECORD, "layer": number, "position": "all"}
            recorder.hear(Committed(Item(f"atlas/{number}", f"layer {number}"), site, sae))
        recorder.hear(Failed(Item("trial/2", "trial 2", {"sae.k": 4}), "out of memory"))
        recorder.hear(RunEnded(FIGURES, {"raysae.choice": "0"}, []))
        assert recorder.close() == 0, recorder.reason
    return tmp_path / "runs" / "mlflow.db"


def experiment_of(database):
    return MlflowClient(f"sqlite:///{database}").get_experiment_by_name("raysae")


def test_a_version_of_another_form_gets_no_view():
    assert view_tags("4.0.1") == {} and view_tags("2.22") == {}
    tags = view_tags("3.17.2")
    assert list(tags) == [f"{SHARED}{key}" for key in VIEWS]
    for text in tags.values():
        state = json.loads(text)
        (section,) = state["compareRunSections"]
        assert {chart["metricSectionId"] for chart in state["compareRunCharts"]} == {
            section["uuid"]
        }


def test_an_experiment_keeps_its_views_up_to_date(recorded):
    client, experiment = MlflowClient(f"sqlite:///{recorded}"), experiment_of(recorded)
    key = f"{SHARED}raysae-sites"
    client.set_experiment_tag(experiment.experiment_id, key, "{}")
    with open_run(raysae.load_recipe(None, [f"runs_dir={recorded.parent}", "name=next"])) as run:
        recorder = MLflowRecorder(run)
        recorder.hear(RunEnded({}, {}, []))
        assert recorder.close() == 0
    assert experiment_of(recorded).tags[key] == view_tags("3")[key]


def test_a_failed_trial_is_found_by_its_settings(recorded):
    client, experiment = MlflowClient(f"sqlite:///{recorded}"), experiment_of(recorded)
    asked = "params.`sae.k` = '4' and attributes.status = 'FAILED'"
    (run,) = client.search_runs([experiment.experiment_id], asked)
    assert run.data.tags["raysae.reason"] == "out of memory"


def test_the_links_open_the_views_in_a_browser(recorded, tmp_path):
    needed(*NAMES)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = MLflowServer(tmp_path, port, recorded).start()
    try:
        with chromium(tmp_path / "profile") as page:
            page.size(1600, 1000)
            here = experiment_of(recorded).experiment_id
            for link in links(here).split("](")[1:]:
                page.open(f"{server.uri}/{link.split(')')[0]}")
                title = next(view.title for key, view in VIEWS.items() if f"={key}&" in link)
                page.wait(f"document.body.innerText.includes({json.dumps(title)})")
                page.wait("document.querySelectorAll('.js-plotly-plot').length >= 2")
            text = page.value("document.body.innerText")
            assert "share key" not in text
    finally:
        server.kill()
