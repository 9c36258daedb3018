"""What fails after the training never costs the run: the stage fails, the rest is done, exit code 1."""

import errno
import shutil
import subprocess
import sys

import pytest

from raysae.atlas import training
from raysae.config.loading import load_run
from raysae.console.command_line import run_command
from raysae.errors import UserError
from raysae.pipeline import summary, sweep_command
from raysae.pipeline.run import run_sweep
from raysae.records.folder import read_run
from raysae.records.status import STAGES
from raysae.report import page, plots, report_command
from raysae.storage.files import read_json, write_json
from raysae.sweep.selection import rules

NO_MLFLOW = ["records.mlflow=false"]


@pytest.fixture
def run(small_run, tmp_path):
    """A copy of the small run, without its report."""
    folder = tmp_path / "runs" / "small"
    shutil.copytree(small_run.folder, folder)
    shutil.rmtree(folder / "report")
    return folder


def again(folder, *more):
    return run_command(sweep_command.main, ["--resume", str(folder), *NO_MLFLOW, *more])


def states(folder):
    stages = read_json(folder / "status.json")["stages"]
    return {name: stage["state"] for name, stage in stages.items()}


def trained(folder):
    return {
        file: file.stat().st_mtime_ns
        for file in [*folder.glob("trials/**/*"), *folder.glob("atlas/**/*")]
    }


DONE = dict.fromkeys(STAGES, "done")
ERRORS = {
    "formula": ValueError("\n$x$\n^\nParseFatalException: Expected end of math"),
    "memory": MemoryError(),
    "disk": OSError(errno.ENOSPC, "No space left on device"),
    "escape": RuntimeError("\x1b[31mred"),
    "exit": SystemExit(3),
    "recursion": RecursionError("too deep"),
    "URI": UserError("s3://bucket/x: does not answer"),
    "import": ImportError("cannot load the font cache"),
}


@pytest.mark.parametrize(
    ("where", "error"),
    [
        *(
            pytest.param(
                "plots",
                error,
                id=name,
                marks=[] if name in ("memory", "exit") else [pytest.mark.long],
            )
            for name, error in ERRORS.items()
        ),
        pytest.param("page", ERRORS["memory"], id="page"),
    ],
)
def test_a_report_that_fails_costs_the_report_alone(run, error, where, monkeypatch, capsys):
    def fail(*arguments, **options):
        raise error

    before = trained(run)
    with monkeypatch.context() as patch:
        patch.setattr(*((plots, "ev_against_l0") if where == "plots" else (page, "template")), fail)
        assert again(run) == 1
    out = capsys.readouterr().out
    assert "report" in out and "Not done" in out and "\x1b" not in out
    assert states(run) == {**DONE, "report": "failed"}
    reason = read_json(run / "status.json")["stages"]["report"]["reason"]
    assert reason and "\x1b" not in reason and "\n" not in reason
    assert not list(run.glob("*.tmp")) and not (run / "report" / "index.html").exists()
    assert again(run) == 0
    assert states(run) == DONE and (run / "report" / "index.html").is_file()
    assert trained(run) == before


def test_a_report_folder_that_cannot_be_written(run):
    (run / "report").write_text("a file in its place")
    assert again(run) == 1
    assert states(run) == {**DONE, "report": "failed"}
    (run / "report").unlink()
    assert again(run) == 0


def test_a_model_with_dollars_in_its_name_has_a_report(run):
    store = load_run(run).store_folder
    manifest = read_json(store / "manifest.json")
    text = (store / "manifest.json").read_text()
    try:
        for part, key in (("model", "id"), ("dataset", "id")):
            manifest[part][key] = "a$b_{$ [/b] \x1b[31m 日本" + "x" * 3000
        write_json(store / "manifest.json", manifest)
        name = str(run)
        assert run_command(report_command.main, [name]) == 0
    finally:
        (store / "manifest.json").write_text(text)
    shown = (run / "report" / "index.html").read_text()
    assert "a$b_{$ [/b] \\x1b[31m 日本" in shown and "\x1b" not in shown


def test_a_choice_that_fails_leaves_atlas_and_trials(run, monkeypatch, capsys):
    (run / "selection.json").unlink()
    before = trained(run)
    with monkeypatch.context() as patch:
        patch.setattr(rules, "select", lambda *a: 1 / 0)
        assert again(run) == 1
    assert "ZeroDivisionError" in capsys.readouterr().out
    assert states(run)["select"] == "failed" and (run / "report" / "index.html").is_file()
    assert trained(run) == before
    assert again(run) == 0 and states(run) == DONE and trained(run) == before


def test_an_atlas_that_fails_leaves_choice_and_report(run, monkeypatch):
    (run / "atlas" / "metrics.parquet").unlink()
    with monkeypatch.context() as patch:
        patch.setattr(training, "train_atlas", lambda *a: 1 / 0)
        assert again(run) == 1
    assert states(run) == {**DONE, "atlas": "failed"}
    assert "this stage failed" in (run / "report" / "index.html").read_text()
    assert again(run) == 0 and states(run) == DONE
    assert "this stage failed" not in (run / "report" / "index.html").read_text()


def test_a_last_screen_that_fails_is_said(run, monkeypatch, capsys):
    monkeypatch.setattr(summary, "_print_choice", lambda result: 1 / 0)
    assert again(run) == 1
    told = capsys.readouterr()
    assert "could not be shown (ZeroDivisionError" in told.err and str(run) in told.err
    assert states(run) == DONE


def test_a_status_that_cannot_be_written_at_the_end(run, monkeypatch):
    def full(self, *arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("raysae.records.folder.RunFolder.records_lost", property(lambda s: 0, full))
    result = run_sweep(load_run(run, NO_MLFLOW))
    assert result.failures == ["status: [Errno 28] No space left on device"]


@pytest.mark.parametrize("sink", ["/dev/full", "closed"])
def test_an_output_that_takes_nothing_costs_nothing(run, sink):
    command = [sys.executable, "-m", "raysae.sweep", "--resume", str(run), *NO_MLFLOW]
    if sink == "closed":
        done = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        done.stdout.close()
        done.wait()
    else:
        with open(sink, "w") as full:
            done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, check=False)
    assert done.returncode == 0
    assert states(run) == DONE and (run / "report" / "index.html").is_file()


DAMAGE = {
    "no run": lambda run: (run / "config.yaml").unlink(),
    "table": lambda run: (run / "trials.parquet").write_bytes(b"PAR1 no more"),
    "choice": lambda run: (run / "selection.json").write_text("{}"),
    "status": lambda run: (run / "status.json").write_text("{"),
    "trial": lambda run: [f.write_text("[]") for f in run.glob("trials/*/metrics.json")],
    "environment": lambda run: (run / "environment.json").unlink(),
    "atlas": lambda run: (run / "atlas" / "metrics.parquet").write_bytes(b""),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_the_report_of_a_damaged_run_costs_no_other_report(run, damage, tmp_path, capsys):
    damaged = tmp_path / "runs" / "damaged"
    shutil.copytree(run, damaged)
    damage(damaged)
    code = run_command(report_command.main, [str(damaged), str(tmp_path / "none"), str(run)])
    told = capsys.readouterr()
    assert code == 1 and (run / "report" / "index.html").is_file()
    assert told.out.split() == [str(read_run(run).report_page)]
    assert told.err.count("error: ") == 2 and "Traceback" not in told.err


def test_a_report_of_nothing_but_what_is_no_run_is_refused(tmp_path, capsys):
    assert run_command(report_command.main, [str(tmp_path), str(tmp_path / "b")]) == 2
    assert capsys.readouterr().err.count("error: ") == 2
