"""Damaged records: one sentence that names the file; what is committed elsewhere is made again."""

import json
import shutil
from pathlib import Path

import pytest

import raysae
from raysae.console.command_line import DONE, PARTLY, REFUSED, run_command
from raysae.errors import UserError
from raysae.pipeline import run as main_job
from raysae.pipeline.sweep_command import main as sweep
from raysae.records.damage import check_commit, check_database, read_selection
from raysae.records.environment import read_environment
from raysae.records.run_files import RunFiles
from raysae.records.status import STAGES, read_status
from raysae.records.tables import read_sites, read_trials, write_table
from raysae.report.report_command import main as report
from raysae.sae import sae_config
from raysae.storage.files import read_json, write_json
from raysae.training import TrainingConfig, load_training, save_training
from raysae.training.rows import Rows
from raysae.training.trainer import Trainer
from tests.hostile.crashes import crash_commits

EARLIER = Path(__file__).parents[1] / "pipeline" / "run_of_version_0_1_0"
KINDS = {
    "empty": lambda data: b"",
    "cut": lambda data: data[: len(data) // 2],
    "random": lambda data: bytes(range(256)) * 3,
    "list": lambda data: b"[1, 2]",
    "number": lambda data: b"7",
    "no keys": lambda data: b"{}",
    "NaN": lambda data: b'{"x": NaN}',
}
"""What happens to a file."""
JSON_ALONE = ("list", "number", "no keys", "NaN")


def damage(file, kind):
    file.write_bytes(KINDS[kind](file.read_bytes()))


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A finished run, which was made by an earlier version and moved."""
    shutil.copytree(EARLIER, tmp_path / "work")
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work" / "runs" / "finished"


@pytest.mark.parametrize("kind", KINDS)
def test_a_status_is_made_again(run, kind):
    damage(run / "status.json", kind)
    status, told = read_status(run)
    assert str(run / "status.json") in told and "made again" in told
    assert status["id"] and status["created"] > 0
    assert {name: entry["state"] for name, entry in status["stages"].items()} == dict.fromkeys(
        STAGES, "pending"
    )


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("id", 3), ("created", "noon"), ("created", None), ("stages", []), ("shared", [1]),
        ("same", {"seed": 3}), ("forced", {}), ("records_lost", -1), ("records_lost", "many"),
    ],
)  # fmt: skip
def test_an_unusable_key_of_a_status_is_named(run, key, value):
    status = {**read_json(run / "status.json"), key: value}
    write_json(run / "status.json", status)
    found, told = read_status(run)
    assert key in told and found.get(key) != value


@pytest.mark.parametrize(
    "entry",
    [
        None, 3, {}, {"state": "odd"}, {"state": "done", "started": "x"}, {"state": "done", "ended": 3.0},
        {"state": "done", "made": 3},
    ],
)  # fmt: skip
def test_an_unusable_stage_is_pending(run, entry):
    status = read_json(run / "status.json")
    status["stages"]["sweep"] = entry
    write_json(run / "status.json", status)
    found, told = read_status(run)
    assert found["stages"]["sweep"] == {"state": "pending"} and "sweep" in told
    assert found["stages"]["report"] == status["stages"]["report"]


def test_a_sound_status_is_left_alone(run):
    status = {**read_json(run / "status.json"), "of_a_later_version": [1]}
    write_json(run / "status.json", status)
    found, told = read_status(run)
    assert told == "" and found == status


@pytest.mark.parametrize("name", ["trials.parquet", "selection.json", "environment.json"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_report_of_damaged_records_is_refused_in_words(run, name, kind, capsys):
    damage(run / name, kind)
    page = (run / "report" / "index.html").read_bytes()
    assert run_command(report, [str(run)]) == REFUSED
    said = capsys.readouterr().err
    assert str(run / name) in said and "--resume" in said and "Traceback" not in said
    assert (run / "report" / "index.html").read_bytes() == page


@pytest.mark.parametrize("name", ["trials.parquet", "selection.json", "atlas/metrics.parquet"])
def test_a_removed_record_is_named(run, name, capsys):
    (run / name).unlink()
    code = run_command(report, [str(run)])
    assert code == (DONE if name.startswith("atlas") else REFUSED)
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["metrics.json", "cfg.json", "sae.safetensors"])
def test_a_damaged_commit_is_set_aside_to_be_made_again(tmp_path, name, kind):
    if kind == "no keys" and name == "cfg.json":
        pytest.skip("its content is checked when the SAE is loaded")
    crash_commits.train(tmp_path)
    files = RunFiles(tmp_path)
    wanted = crash_commits.content(files.trial(0))
    assert files.set_damaged_aside() == []
    damage(files.trial(0) / name, kind)
    (line,) = files.set_damaged_aside()
    assert str(files.trial(0) / name) in line and (tmp_path / "trials" / "000.damaged").is_dir()
    crash_commits.train(tmp_path)
    assert crash_commits.content(files.trial(0)) == wanted


@pytest.mark.parametrize("rows", [[{"x": 1}], [{"trial": "a", "state": "done", "sae.variant": "topk"}],
                                  [{"trial": 1, "state": None, "sae.variant": "topk"}]])  # fmt: skip
def test_a_table_of_another_kind_is_no_table_of_trials(tmp_path, rows):
    write_table(tmp_path / "t.parquet", rows)
    for read in (read_trials, read_sites):
        with pytest.raises(UserError, match="t.parquet"):
            read(tmp_path / "t.parquet")


@pytest.mark.parametrize(
    "choice",
    [None, [], {}, {"trial": "x", "reason": ""}, {"trial": 1}, {"trial": 1.5, "reason": "r"}],
)
def test_a_selection_without_a_choice_is_refused(tmp_path, choice):
    write_json(tmp_path / "selection.json", {"rule": "knee", "choice": choice})
    with pytest.raises(UserError, match="selection.json"):
        read_selection(tmp_path / "selection.json")


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_study_and_environment_are_named(tmp_path, kind):
    for name, check in (("study.db", check_database), ("environment.json", read_environment)):
        (tmp_path / name).write_bytes(KINDS[kind](b'{"raysae": "1", "packages": {}}'))
        if name == "study.db" and kind == "empty":
            continue  # SQLite's empty database has no table: tried below
        with pytest.raises(UserError, match=name):
            check(tmp_path / name)
    (tmp_path / "study.db").write_bytes(b"")
    with pytest.raises(UserError, match="study.db"):
        check_database(tmp_path / "study.db")


def trainer():
    rows = crash_commits.WORLD.rows(200, 0), crash_commits.WORLD.rows(100, 1)
    config = sae_config({"variant": "topk", "d_sae": 32, "k": 2})
    return Trainer(config, TrainingConfig(batch_size=64, lr=3e-3), *map(Rows, rows))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("step", "x"), ("step", None), ("step", -1), ("step", 10**9), ("tokens", None), ("tokens", 1.5),
        ("seconds", "x"), ("waited", None), ("loss", "x"), ("history", {}), ("history", [3]), ("job", 3),
        ("position", {"epoch": "x"}), ("position", None),
    ],
)  # fmt: skip
def test_a_checkpoint_with_an_unusable_value_is_refused(tmp_path, key, value):
    saved = trainer()
    next(saved.rounds())
    save_training(saved, tmp_path / "c", [{"step": 1}])
    file = tmp_path / "c" / "training.json"
    write_json(file, {**json.loads(file.read_text()), key: value})
    with pytest.raises(UserError, match=r"training\.json"):
        load_training(trainer(), tmp_path / "c")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["training.json", "training.safetensors"])
def test_a_damaged_checkpoint_is_refused(tmp_path, name, kind):
    save_training(trainer(), tmp_path / "c")
    damage(tmp_path / "c" / name, kind)
    with pytest.raises(UserError, match=name):
        load_training(trainer(), tmp_path / "c")


def test_a_damaged_recipe_of_a_run_is_named(run, capsys):
    (run / "config.yaml").write_bytes(b"\x00\xff\xfe")
    assert run_command(sweep, ["--resume", str(run)]) == REFUSED
    assert str(run / "config.yaml") in capsys.readouterr().err


def test_numbers_that_are_none_are_damage(tmp_path):
    for word in ("NaN", "Infinity", "-Infinity"):
        (tmp_path / "a.json").write_text(f'{{"mean": {word}}}')
        with pytest.raises(UserError, match=word):
            read_json(tmp_path / "a.json")


def test_a_commit_that_is_whole_is_sound(tmp_path):
    crash_commits.train(tmp_path)
    check_commit(tmp_path / "trials" / "000")


@pytest.mark.parametrize(
    "name", ["selection.json", "environment.json", "sweet_spot/sae.safetensors"]
)
@pytest.mark.parametrize(
    "kind", ["random", *(pytest.param(kind, marks=pytest.mark.long) for kind in ("empty", "list"))]
)
def test_what_is_damaged_is_made_again_without_training(tmp_path, monkeypatch, name, kind, capsys):
    shutil.copytree(EARLIER, tmp_path / "earlier")
    run = tmp_path / "earlier" / "runs" / "finished"
    given = [f"runs_dir={run.parent}", f"store={tmp_path / 'earlier/stores/small'}"]
    recipe = raysae.load_recipe(run / "config.yaml", given)
    monkeypatch.setattr(main_job, "trial_session", None)  # a training would need it
    choice = raysae.sweep(recipe).selection["choice"]
    damage(run / name, kind)
    result = raysae.sweep(recipe)
    assert str(run / name) in capsys.readouterr().out
    assert result.selection["choice"] == choice and result.failures == []
    assert read_selection(run / "selection.json")["choice"] == choice
    assert raysae.load_sae(run / "sweet_spot") is not None
    read_environment(run / "environment.json")
    assert run_command(report, [str(run), str(run)]) == DONE
    assert raysae.sweep(recipe).failures == []
    assert "again" not in capsys.readouterr().out.replace("extract it again", "")


def test_one_page_of_two_is_a_part(run, tmp_path, capsys):
    assert run_command(report, [str(run), str(tmp_path / "none")]) == PARTLY
    assert "none" in capsys.readouterr().err
