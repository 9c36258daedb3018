"""A tracking server that goes away in mid-sweep and comes back: nothing is missing afterwards."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request

import pytest
from mlflow import MlflowClient

import raysae
from raysae.files import read_json, write_json
from raysae.records import tracking
from raysae.records.tracking import MLflowRecorder


def start_server(folder, port):
    server = subprocess.Popen(
        [
            sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port),
            "--workers", "1", "--backend-store-uri", f"sqlite:///{folder}/server.db",
            "--artifacts-destination", str(folder / "artifacts"),
        ],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    until = time.monotonic() + 600
    while time.monotonic() < until:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1).close()
            return server
        except OSError:
            time.sleep(0.2)
    stop(server)
    raise AssertionError("the MLflow server did not start")


def stop(server):
    os.killpg(server.pid, signal.SIGKILL)
    server.wait()


def named(number):
    return f"trial/{number:03d}", f"trial {number}"


@pytest.fixture
def port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def test_records_wait_for_a_server_that_is_away(small_run, tmp_path, monkeypatch, port):
    monkeypatch.setattr(tracking, "RETRY_SECONDS", 0.2)
    monkeypatch.setattr(tracking, "LAST_TRIES_SECONDS", 60)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
    trials = [
        (row["trial"], small_run.run.trial(row["trial"]))
        for row in small_run.trials
        if row["state"] == "done"
    ]
    server = start_server(tmp_path, port)
    try:
        recorder = MLflowRecorder(small_run.run)
        for number, folder in trials[:2]:
            recorder.sae_done(*named(number), read_json(folder / "metrics.json"), folder)
        while recorder._queue.qsize():
            time.sleep(0.1)
        stop(server)
        started = time.monotonic()
        for number, folder in trials[2:]:
            record = read_json(folder / "metrics.json")
            recorder.trial_progress(*named(number), record["parameters"], {"step": 1, "loss": 2.0})
            recorder.sae_done(*named(number), record, folder)
        recorder.finish({"explained_variance": 0.5}, {"raysae.choice": "1"}, [])
        assert time.monotonic() - started < 1, "records never slow a sweep"
        server = start_server(tmp_path, port)
        assert recorder.close() == 0
        client = MlflowClient(f"http://127.0.0.1:{port}")
        runs = client.search_runs([e.experiment_id for e in client.search_experiments()])
        assert sorted(run.info.run_name for run in runs) == sorted(
            ["small", *(f"trial {number}" for number, _ in trials)]
        )
        assert all(run.info.status == "FINISHED" for run in runs)
        for run in runs:
            if run.info.run_name != "small":
                assert "explained_variance" in run.data.metrics
                assert [file.path for file in client.list_artifacts(run.info.run_id)] == ["sae"]
    finally:
        stop(server)


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
