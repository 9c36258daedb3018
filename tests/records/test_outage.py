"""A tracking server that goes away in mid-sweep and comes back: nothing is missing afterwards."""

import shutil
import socket
import threading
import time

import pytest
from mlflow import MlflowClient

import raysae
from raysae.activations.synthetic import SuperpositionWorld, write_synthetic_store
from raysae.records import mlflow_listener
from raysae.storage.files import read_json, write_json
from raysae.sweep.search.searcher import OrderedSearcher
from scripts.mlflow_server import MLflowServer


@pytest.fixture
def port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


class Outage(threading.Thread):
    """Ends the server once two trials are committed, and starts it again once four are."""

    def __init__(self, server, trials):
        super().__init__(daemon=True)
        self.server, self.trials = server, trials
        self.gone = self.back = 0.0
        self.over = threading.Event()

    def run(self):
        self.wait_for(2)
        self.server.kill()
        self.gone = time.time()
        self.wait_for(4)
        self.server.start()
        self.back = time.time()
        self.over.set()

    def wait_for(self, commits):
        while len(list(self.trials.glob("*/metrics.json"))) < commits:
            time.sleep(0.02)


@pytest.mark.long
def test_a_sweep_goes_on_while_the_server_is_away(connected_ray, tmp_path, monkeypatch, port):
    monkeypatch.setattr(mlflow_listener, "RETRY_SECONDS", 0.2)
    monkeypatch.setattr(mlflow_listener, "LAST_TRIES_SECONDS", 60)
    world = SuperpositionWorld(d_in=16, atoms=24, p=0.08)
    write_synthetic_store(tmp_path / "store", world, 1500, validation=0.2, test=0.0)
    server = MLflowServer(tmp_path, port).start()
    outage = Outage(server, tmp_path / "runs/away/trials")
    propose = OrderedSearcher.suggest

    def held(searcher, trial_id):
        """The sixth trial begins when the server is back, so that it comes back in mid-sweep."""
        return propose(searcher, trial_id) if searcher._next < 5 or outage.over.is_set() else None

    monkeypatch.setattr(OrderedSearcher, "suggest", held)
    outage.start()
    try:
        result = raysae.sweep(
            {
                "name": "away", "source": None, "atlas": {"enabled": False},
                "store": str(tmp_path / "store"), "runs_dir": str(tmp_path / "runs"),
                "training": {"epochs": 4, "batch_size": 64, "evaluations": 4},
                "sweep": {
                    "sampler": "grid", "trials": 8,
                    "space": {"sae.d_sae": {"choices": [8, 16, 24, 32]}, "sae.k": {"choices": [1, 2]}},
                },
                "records": {"tracking_uri": server.uri}, "resources": {"max_concurrent": 1},
            }
        )  # fmt: skip
        stage = read_json(result.folder / "status.json")["stages"]["sweep"]
        assert stage["started"] < outage.gone < outage.back < stage["ended"]
        assert result.failures == [] and result.records_lost == 0
        client = MlflowClient(server.uri)
        runs = client.search_runs([e.experiment_id for e in client.search_experiments()])
        assert sorted(run.info.run_name for run in runs) == sorted(
            ["away", *(f"trial {number}" for number in range(8))]
        )
        assert all(run.info.status == "FINISHED" for run in runs)
        for run in runs:
            if run.info.run_name != "away":
                steps = client.get_metric_history(run.info.run_id, "explained_variance")
                assert len({metric.step for metric in steps}) == 4
                assert [file.path for file in client.list_artifacts(run.info.run_id)] == ["sae"]
    finally:
        server.kill()


def test_what_was_lost_is_sent_by_the_next_go(small_run, tmp_path, monkeypatch):
    shutil.copytree(small_run.folder, tmp_path / "small")
    recipe = small_run.run.recipe.model_copy(update={"runs_dir": str(tmp_path)})
    status = read_json(tmp_path / "small" / "status.json")
    tracking_file = tmp_path / "later.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tracking_file}")
    raysae.sweep(recipe)
    assert not tracking_file.exists(), "a finished run whose records are complete is only read"
    write_json(tmp_path / "small" / "status.json", {**status, "records_lost": 3})
    result = raysae.sweep(recipe)
    assert result.records_lost == 0 and result.run.records_lost == 0
    client = MlflowClient(f"sqlite:///{tracking_file}")
    runs = client.search_runs([e.experiment_id for e in client.search_experiments()])
    assert len(runs) == 1 + len(small_run.trials) + len(small_run.atlas)
