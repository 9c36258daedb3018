"""MLflow that takes no records: why, at once, and without a password."""

import re
import sqlite3
import time
from itertools import pairwise

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import ErrorCode

from raysae.config import load_recipe
from raysae.pipeline.result import SweepResult
from raysae.pipeline.summary import print_summary
from raysae.records import mlflow_listener
from raysae.records.events import Failed, Item, RunEnded
from raysae.records.folder import open_run
from raysae.records.mlflow_listener import MLflowRecorder
from raysae.records.mlflow_refusal import check_file, reason_of, sqlite_uri


def refused(tmp_path, uri):
    """What becomes of one record for MLflow at ``uri``: how many lost, why, after how many seconds."""
    given = [f"records.tracking_uri={uri}", f"runs_dir={tmp_path}", "name=r"]
    with open_run(load_recipe(None, given)) as run:
        started = time.monotonic()
        recorder = MLflowRecorder(run)
        recorder.hear(RunEnded({"l0": 1.0}, {}, []))
        lost = recorder.close()
        return lost, recorder.reason, time.monotonic() - started


def deleted_experiment(tmp_path):
    client = MlflowClient(f"sqlite:///{tmp_path}/deleted.db")
    client.delete_experiment(client.create_experiment("raysae"))
    return f"sqlite:///{tmp_path}/deleted.db"


def garbage(tmp_path):
    (tmp_path / "garbage.db").write_bytes(b"x" * 5000)
    return f"sqlite:///{tmp_path}/garbage.db"


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        (lambda folder: "./mlruns", "filesystem tracking backend .* maintenance mode"),
        (lambda folder: f"file:{folder}/mlruns", "filesystem tracking backend"),
        (lambda folder: "foo://x", "unsupported URI 'foo://x'"),
        (lambda folder: f"sqlite:///{folder}", "cannot be written .unable to open"),
        (lambda folder: "sqlite:////proc/x/y.db", "cannot be written .No such file"),
        (garbage, "cannot be written .file is not a database"),
        (lambda folder: "postgresql://me@localhost/x", "No module named 'psycopg"),
        (deleted_experiment, "'raysae' was deleted; restore it"),
    ],
)
def test_a_refusal_has_a_reason_and_takes_no_time(uri, words, tmp_path, monkeypatch):
    monkeypatch.setattr(
        mlflow_listener, "LAST_TRIES_SECONDS", 1e6
    )  # nothing waits for a better time
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "postgresql://me:secret@localhost/x")
    lost, reason, _ = refused(tmp_path, uri(tmp_path))
    assert lost == 1
    assert re.search(words, reason), reason
    assert "secret" not in reason and len(reason) <= 400


def test_a_server_that_is_down(tmp_path, monkeypatch):
    monkeypatch.setattr(mlflow_listener, "LAST_TRIES_SECONDS", 0.1)
    monkeypatch.setattr(mlflow_listener, "RETRY_SECONDS", 0.1)
    lost, reason, took = refused(tmp_path, "http://127.0.0.1:9")
    assert (lost, reason) == (1, "it does not answer (Connection refused)")
    assert took < 60  # each try is no news: the wait is not begun again


def test_mlflow_that_never_returns_is_left_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(mlflow_listener, "STUCK_SECONDS", 0.2)
    monkeypatch.setattr(mlflow_listener.Writer, "__init__", lambda self, run, uri: time.sleep(30))
    lost, reason, took = refused(tmp_path, "http://host")
    assert (lost, reason) == (1, "it does not answer") and took < 20


def test_the_last_screen_says_why(small_run, capsys):
    result = SweepResult(small_run.run, small_run.trials, small_run.selection)
    result.records_lost, result.records_reason = 3, "its experiment was deleted"
    print_summary(result, 10, short=True)
    assert "did not take 3 records: its experiment was deleted. The run folder" in " ".join(
        capsys.readouterr().out.split()
    )


def test_a_file_in_use_is_no_refusal(tmp_path, monkeypatch):
    monkeypatch.setattr("raysae.records.mlflow_refusal.BUSY_SECONDS", 0.0)
    file = tmp_path / "busy.db"
    with sqlite3.connect(file) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            check_file(f"sqlite:///{file}")


@pytest.mark.parametrize("name", ["a b", "100%41", "what?", "it's #1 é"])
def test_the_default_file_is_where_the_runs_are(name, tmp_path):
    folder = tmp_path / name
    folder.mkdir()
    MlflowClient(sqlite_uri(folder / "mlflow.db")).search_experiments()
    assert [file.name for file in folder.iterdir()] == ["mlflow.db"]


def test_passwords_are_not_told():
    assert (
        reason_of(OSError("no way to mysql://me:secret@host/x"))
        == "no way to mysql://me:***@host/x"
    )


@pytest.mark.parametrize(
    ("code", "failures", "lost", "tries"),
    [
        ("INTERNAL_ERROR", 2, 0, 3),  # as a server fails that has just come back
        ("INTERNAL_ERROR", 1000, 1, mlflow_listener.TRIES),
        ("INVALID_PARAMETER_VALUE", 1000, 1, 1),
    ],
)
def test_an_error_that_may_pass_is_tried_again_although_mlflow_answers(
    code, failures, lost, tries, tmp_path, monkeypatch
):
    monkeypatch.setattr(mlflow_listener, "RETRY_SECONDS", 0.1)
    write, seen = mlflow_listener.Writer.finish, []

    def failing(writer, *given):
        seen.append(time.monotonic())
        if len(seen) <= failures:
            raise MlflowException("API request failed", error_code=ErrorCode.Value(code))
        return write(writer, *given)

    monkeypatch.setattr(mlflow_listener.Writer, "finish", failing)
    found, _, _ = refused(tmp_path, f"sqlite:///{tmp_path}/mlflow.db")
    assert (found, len(seen)) == (lost, tries)


def test_a_call_that_wrote_but_gave_no_answer_is_not_written_twice(tmp_path, monkeypatch):
    monkeypatch.setattr(mlflow_listener, "RETRY_SECONDS", 0.1)
    log_batch, seen = MlflowClient.log_batch, []

    def silent(client, run_id, metrics=(), *given, **options):
        log_batch(client, run_id, metrics, *given, **options)
        if metrics:
            seen.append(run_id)
            if len(seen) == 1:
                raise MlflowException("no answer", error_code=ErrorCode.Value("INTERNAL_ERROR"))

    monkeypatch.setattr(MlflowClient, "log_batch", silent)
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    assert refused(tmp_path, uri)[0] == 0
    history = MlflowClient(uri).get_metric_history(seen[0], "l0")
    assert [(one.step, one.value) for one in history] == [(0, 1.0)]


def test_threads_take_turns_to_try_a_server_that_is_down(tmp_path, monkeypatch):
    monkeypatch.setattr(mlflow_listener, "RETRY_SECONDS", 0.5)
    monkeypatch.setattr(mlflow_listener, "LAST_TRIES_SECONDS", 0.0)
    connect, seen = MLflowRecorder._connect, []

    def counted(recorder):
        seen.append(time.monotonic())
        return connect(recorder)

    monkeypatch.setattr(MLflowRecorder, "_connect", counted)
    given = ["records.tracking_uri=http://127.0.0.1:9", f"runs_dir={tmp_path}", "name=r"]
    with open_run(load_recipe(None, given)) as run:
        recorder = MLflowRecorder(run)
        for number in range(4 * mlflow_listener.LANES):
            recorder.hear(Failed(Item(f"trial/{number}", f"trial {number}", {}), "no rows"))
        time.sleep(3.0)
        before = list(seen)
        assert recorder.close() == 4 * mlflow_listener.LANES
    assert 2 <= len(before) <= 8
    assert all(later - earlier >= 0.5 for earlier, later in pairwise(before))


def test_tries_at_a_server_that_is_away_are_not_counted(tmp_path, monkeypatch):
    """After a long outage the server comes back between the refused call and the question."""
    monkeypatch.setattr(mlflow_listener, "RETRY_SECONDS", 0.05)
    write, seen = mlflow_listener.Writer.finish, []

    def failing(writer, *given):
        seen.append(time.monotonic())
        if len(seen) <= 2 * mlflow_listener.TRIES:
            raise MlflowException(
                "API request failed", error_code=ErrorCode.Value("INTERNAL_ERROR")
            )
        return write(writer, *given)

    monkeypatch.setattr(mlflow_listener.Writer, "finish", failing)
    back = 2 * mlflow_listener.TRIES
    monkeypatch.setattr(mlflow_listener.Writer, "answers", lambda writer: len(seen) >= back)
    lost, _, _ = refused(tmp_path, f"sqlite:///{tmp_path}/mlflow.db")
    assert (lost, len(seen)) == (0, back + 1)
