"""Printed commands work as they stand, whatever is in the path of the run or the store."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from raysae.activations.store_command import main as store_main
from raysae.config import load_recipe
from raysae.console.shell import command_line, look_at_records, look_at_store, raysae_command
from raysae.pipeline.sweep_command import main as sweep_main

EARLIER = Path(__file__).parents[1] / "pipeline" / "run_of_version_0_1_0"
ODD = 'it\'s a "run" for $HOME & `more`; [red] :x: #1 é'


@pytest.fixture
def odd(tmp_path, monkeypatch):
    folder = tmp_path / ODD
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def in_a_shell(line: str) -> subprocess.CompletedProcess:
    """Run a printed line as somebody would who has this Python as ``python``."""
    environment = {
        "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin",
        "PYTHONPATH": ":".join(sys.path),
    }
    return subprocess.run(
        ["bash", "-c", line], check=False, env={**environment, "HOME": str(Path.home())},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip


def printed(text: str, *names: str) -> list[str]:
    """The commands that stand behind ``names`` in what was printed."""
    return [re.search(rf"^ *{name}:? +((?:python|mlflow) .*)$", text, re.M)[1] for name in names]


def test_a_shell_gets_each_word_as_it_was(odd):
    words = ["-x", "a b", "it's", "$HOME", "`x`", "", "a\nb", "*", "é"]
    show = [sys.executable, "-c", "import sys; print(sys.argv[1:])"]
    assert in_a_shell(command_line(*show, *words)).stdout.strip() == repr(words)
    assert command_line("ls", Path("-x")) == "ls ./-x"


@pytest.mark.parametrize("command", ["import", "synthetic"])
def test_the_lines_of_a_store_command(odd, capsys, command):
    np.save("x.npy", np.random.default_rng(0).normal(size=(200, 8)).astype("f4"))
    imported = ["import", "x.npy", "--out", "my store", "--layer", "0", "--position", "all"]
    made = ["synthetic", "--out", "my store", "--d-in", "8", "--atoms", "8", "--rows", "200"]
    assert store_main(imported if command == "import" else made) == 0
    look, check, sweep = printed(capsys.readouterr().out, "look", "check", "sweep")
    assert look == "python -m raysae.store show 'my store'"
    assert in_a_shell(look).returncode == 0
    assert "sound" in in_a_shell(check).stdout
    told = in_a_shell(f"{sweep} --print-config")
    assert told.returncode == 0 and "store: my store" in told.stdout, told.stderr


def test_the_lines_of_a_run(odd, capsys):
    shutil.copytree(EARLIER, odd, dirs_exist_ok=True)
    assert sweep_main(["--resume", "runs/finished", "records.mlflow=true"]) == 0
    records = printed(capsys.readouterr().out, "MLflow")[0]
    assert in_a_shell(f"{records} --help").returncode == 0
    uri = f"sqlite:///{odd}/runs/mlflow.db"
    assert records == command_line("mlflow", "ui", "--backend-store-uri", uri)
    again = raysae_command("sweep", "--resume", load_recipe("runs/finished/config.yaml").run_place)
    told = in_a_shell(f"cd / && {again} --print-config")
    assert told.returncode == 0 and yaml.safe_load(told.stdout)["working_dir"] == str(odd), told
    page = (odd / "runs/finished/report/index.html").parent
    assert str(page) in in_a_shell(raysae_command("report", odd / "runs/finished")).stdout


def test_lines_name_what_they_are_about():
    assert "verify 'a b'" in look_at_store("a b") and "'store=a b'" in look_at_store("a b")
    assert look_at_records("./ml runs") == "mlflow ui --backend-store-uri './ml runs'"
    assert look_at_records("http://me:secret@host") == "http://me:***@host"
