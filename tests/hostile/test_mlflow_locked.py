"""MLflow that hangs at the end of a run: the wait is bounded, what is lost is counted and sent later."""

import collections
import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest
from mlflow import MlflowClient

from raysae.config import load_recipe
from raysae.records import mlflow_listener
from raysae.records.events import Progressed
from raysae.records.folder import open_run
from raysae.records.mlflow_listener import MLflowRecorder
from raysae.records.mlflow_refusal import why_silent
from raysae.storage.files import read_json
from tests.hostile import locked_program
from tests.hostile.locked_program import count, events, hold

HANG = 60
"""Seconds that tell a process that hangs (it waits for minutes) from one that leaves."""

pytestmark = pytest.mark.long


class Server(threading.Thread):
    """Takes every connection; says nothing, or a byte of an endless answer from time to time."""

    def __init__(self, drips):
        super().__init__(daemon=True)
        self.drips, self.socket = drips, socket.create_server(("127.0.0.1", 0))
        self.uri = f"http://127.0.0.1:{self.socket.getsockname()[1]}"
        self.start()

    def run(self):
        while True:
            one, _ = self.socket.accept()
            threading.Thread(target=self.answer, args=(one,), daemon=True).start()

    def answer(self, one):
        try:
            one.sendall(b"HTTP/1.1 200 OK\r\nX: " if self.drips else b"")
            while self.drips:
                one.sendall(b"x")
                time.sleep(0.5)
            threading.Event().wait()
        except OSError:
            return


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    """What became of processes with four kinds of MLflow that hangs; they run side by side."""
    made = {}
    for kind in ("EXCLUSIVE", "IMMEDIATE", "silent", "dripping"):
        folder = tmp_path_factory.mktemp(kind)
        locks = kind.isupper()
        uri = f"sqlite:///{folder}/mlflow.db" if locks else Server(kind == "dripping").uri
        words = [folder, uri, kind if locks else ""]
        process = subprocess.Popen(
            [sys.executable, locked_program.__file__, *map(str, words)],
            start_new_session=True, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        made[kind] = (process, folder, locks)
    found = {}
    for kind, (process, folder, locks) in made.items():
        file = folder / ("server.json" if not locks else f"{kind}.json")
        wait_for(file, process)
        closed = time.monotonic()
        process.wait(HANG)
        left = time.monotonic() - closed
        assert process.returncode == 0, process.stderr.read()
        found[kind] = (read_json(file), left)
        end_group(process)
    return found


def wait_for(file, process):
    until = time.monotonic() + 2 * HANG
    while not file.exists() and process.poll() is None and time.monotonic() < until:
        time.sleep(0.05)


def end_group(process):
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # the process that holds the lock


@pytest.mark.parametrize(
    ("kind", "lost", "reason"),
    [
        ("EXCLUSIVE", 5, "locked"),
        ("IMMEDIATE", 5, "locked"),
        ("silent", 5, "does not answer"),
        ("dripping", 5, "does not answer"),
    ],
)
def test_the_wait_at_the_end_is_bounded(kind, lost, reason, ended):
    told, left = ended[kind]
    assert told["lost"] == lost and reason in told["reason"]
    assert told["close"] < HANG / 2, "MLflow itself tries for minutes"
    assert left < HANG / 2, "nothing that hangs delays the end of the process"


def recorded(client):
    runs = client.search_runs([e.experiment_id for e in client.search_experiments()])
    return collections.Counter(run.info.run_name for run in runs), runs


def test_what_was_lost_is_sent_once_when_the_lock_is_gone(tmp_path, monkeypatch):
    monkeypatch.setattr(mlflow_listener, "RETRY_SECONDS", 0.1)
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    given = [f"runs_dir={tmp_path}", "name=r", f"records.tracking_uri={uri}"]
    all_events = events(3)
    news = [Progressed(all_events[0].item, {"step": n, "l0": float(n)}, 0.5) for n in range(3)]
    with open_run(load_recipe(None, given)) as run:
        recorder = MLflowRecorder(run)
        for event in news[:2]:
            recorder.hear(event)
        client = MlflowClient(uri)
        while count(tmp_path / "mlflow.db", "metrics") < 2:
            time.sleep(0.05)
        lock = hold(tmp_path / "mlflow.db", "EXCLUSIVE")
        for event in [news[2], *all_events]:
            recorder.hear(event)
        lost = recorder.close()
        assert lost == 4 and "locked" in recorder.reason
        lock.communicate()
        for _ in range(2):  # all is sent again, and again
            recorder = MLflowRecorder(run)
            for event in [*news, *all_events]:
                recorder.hear(event)
            assert recorder.close() == 0
    names, runs = recorded(client)
    assert names == {"r": 1, "trial 0": 1, "trial 1": 1, "trial 2": 1}
    first = next(run for run in runs if run.info.run_name == "trial 0")
    steps = [one.step for one in client.get_metric_history(first.info.run_id, "l0")]
    assert sorted(steps) == [0, 1, 2]
    assert all(len(run.inputs.dataset_inputs) == 1 for run in runs)


def test_why_a_store_is_silent(tmp_path):
    assert why_silent("http://x") == "it does not answer"
    lock = hold(tmp_path / "x.db", "EXCLUSIVE")
    assert why_silent(f"sqlite:///{tmp_path}/x.db") == "database is locked, by another process"
    lock.communicate()
    assert why_silent(f"sqlite:///{tmp_path}/x.db") == "it does not answer"
