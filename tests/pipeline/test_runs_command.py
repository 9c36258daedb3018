"""Looking at runs: the list, the last screen again, what failed and its last words."""

import json
import shutil

import pytest

from raysae.console.command_line import DONE, PARTLY, REFUSED, run_command
from raysae.pipeline.runs_command import failures, runs, show
from raysae.storage.files import read_json, write_json
from tests.atlas.library.conftest import FAILED, WHY, run  # noqa: F401


@pytest.fixture
def folder(run, tmp_path):  # noqa: F811
    """A folder of runs with one run, whose atlas lacks a site that left a traceback."""
    there = run.copy(tmp_path / "runs" / "small")
    recipe = there / "config.yaml"
    recipe.write_text(recipe.read_text().replace("enabled: true", "enabled: false", 1))
    trace = there / "atlas" / f"{FAILED.folder}.error.txt"
    trace.write_text("Traceback\n  one\n  two\n  three\n  four\nNonFiniteLossError: it is nan\n")
    return there


def test_runs_are_listed_with_their_state(folder, capsys):
    assert run_command(runs, [str(folder.parent)]) == DONE
    said = capsys.readouterr().out.splitlines()
    assert said[0].split() == ["name", "state", "trials", "failed", "chosen", "explained",
                               "variance", "sites", "made"]  # fmt: skip
    assert said[1].split()[:3] == ["small", "extract", "pending"] and len(said) == 2
    run_command(runs, [str(folder.parent), "--json"])
    (row,) = json.loads(capsys.readouterr().out)
    assert row["failed"] == 1 and row["sites"] == 3 and row["trials"] is None


def test_a_run_that_cannot_be_read_does_not_hide_the_others(folder, capsys):
    broken = folder.parent / "broken"
    shutil.copytree(folder, broken)
    (broken / "config.yaml").write_text("sweep: [")
    assert run_command(runs, [str(folder.parent)]) == DONE
    first, second = capsys.readouterr().out.splitlines()[1:]
    assert first.startswith("broken  cannot be read: ") and second.startswith("small")


def test_what_failed_is_shown_with_its_last_words(folder, capsys):
    assert run_command(failures, [str(folder)]) == PARTLY
    said = capsys.readouterr().out
    assert said.startswith(f"{FAILED}: {WHY}\n")
    assert "    NonFiniteLossError: it is nan\n" in said and "Traceback" not in said
    assert f"(atlas/{FAILED.folder}.error.txt)" in said
    run_command(failures, [str(folder), "--json"])
    (one,) = json.loads(capsys.readouterr().out)
    assert one["reason"] == WHY and len(one["last_words"]) == 5


def test_a_failed_stage_is_shown_too(folder, capsys):
    (folder / "atlas" / "metrics.parquet").unlink()
    entry = {"state": "failed", "started": 1.0, "reason": "OSError: the disk is full"}
    status = {"id": "a" * 32, "created": 1.0, "stages": {"report": entry}}
    write_json(folder / "status.json", status)
    run_command(failures, [str(folder)])
    assert "stage report: OSError: the disk is full" in capsys.readouterr().out
    assert read_json(folder / "status.json") == status


def test_the_last_screen_is_shown_from_the_files(folder, capsys):
    before = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    assert run_command(show, [str(folder)]) == DONE
    said = capsys.readouterr().out
    assert "Atlas: 3 sites, explained variance" in said and WHY in said
    assert {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()} == before
    run_command(show, [str(folder), "--json"])
    found = json.loads(capsys.readouterr().out)
    assert [row["state"] for row in found["atlas"]].count("failed") == 1


def test_what_is_no_run_is_refused(tmp_path, capsys):
    for command, place in ((runs, tmp_path / "nothing"), (show, tmp_path), (failures, tmp_path)):
        assert run_command(command, [str(place)]) == REFUSED
        assert capsys.readouterr().err.startswith("error: ")
    assert run_command(runs, [str(tmp_path)]) == DONE
    assert capsys.readouterr().out == f"no runs in {tmp_path}\n"
