"""What is taken away in the middle of work: the folder, the store, the permission, the disk."""

import os
import shutil
import time
from contextlib import suppress

import pytest

from raysae.activations import Site, open_store
from raysae.activations.importing import target
from raysae.activations.store_command import main as store_command
from raysae.activations.synthetic import write_synthetic_store
from raysae.config import parse_recipe
from raysae.console.board import Board
from raysae.console.command_line import PARTLY, REFUSED, run_command
from raysae.errors import UnfinishedError, UserError
from raysae.pipeline.begun import told_if_begun
from raysae.records.folder import open_run, read_run
from raysae.records.run_files import RunFiles
from raysae.storage import leftovers, remote
from raysae.storage.files import remove_temporary, replacing_folder
from raysae.sweep.trials.gang import Gang
from raysae.sweep.trials.trial import Trial
from raysae.training import TrainingConfig
from raysae.training.ensemble import Member
from raysae.training.rows import Rows
from tests.hostile.crashes import crash_commits

HERE = Site(0, "all")
OWNER, OTHER = 65533, 65534
DEAD = 2**22 - 1
"""A process id that no process has."""


@pytest.fixture
def recipe(tmp_path):
    return parse_recipe({"name": "x", "runs_dir": str(tmp_path / "runs"), "source": None,
                         "store": str(tmp_path / "store"), "records": {"mlflow": False}})  # fmt: skip


def test_nothing_is_written_in_the_place_of_a_deleted_run(recipe, tmp_path):
    with open_run(recipe) as run:
        worker = run.for_workers()
        shutil.rmtree(run.path)
        for write in (
            lambda: run.begin_again("sweep"),
            lambda: worker.write_json(run.path / "trials" / "000.stopped.json", {}),
            lambda: worker.write_table(run.trials_file, [{"trial": 0}]),
            lambda: worker.record(worker.trial(0)),
            lambda: run.copy_sweet_spot(0),
        ):
            with pytest.raises(UserError, match="was deleted") as told:
                write()
            assert str(run.path) in str(told.value)
    assert not run.path.exists()


def test_a_trial_of_a_deleted_run_says_so(recipe, tmp_path):
    with open_run(recipe) as run:
        files = run.for_workers()
        trial = Trial({"trial": 0, "parameters": {}}, files, "cpu", {"store": "s"})
        config = crash_commits.sae_config({"variant": "topk", "d_sae": 32, "k": 2})
        rows = Rows(crash_commits.WORLD.rows(300, 0)), Rows(crash_commits.WORLD.rows(100, 1))
        training = TrainingConfig(epochs=4, batch_size=64, lr=3e-3, evaluations=4)
        gang = Gang([trial.begin({(HERE, 0): Member(config, training, *rows)}, None)], 0)
        for number, _ in enumerate(gang.rounds()):
            if number == 1:
                shutil.rmtree(run.path)
            if not trial.ended:
                trial.advance({HERE: {}})
        assert "was deleted" in trial.report["failed"] and not run.path.exists()
        late = Trial({"trial": 1, "parameters": {}}, files, "cpu", {"store": "s"})
        assert "was deleted" in late.report["failed"], "raised, it would end the actor"


LEFT = [".ray/tune/x.json", "study.db", "trials/001.training/a/training.json", "atlas/x.training/y"]


@pytest.mark.parametrize("name", LEFT)
def test_a_run_folder_of_leftovers_may_be_used_again(recipe, name):
    (recipe.run_folder / name).parent.mkdir(parents=True)
    (recipe.run_folder / name).write_text("left")
    with open_run(recipe) as run:
        assert run.state("sweep") == "pending"


@pytest.mark.parametrize("name", ["notes.txt", "trials/data.npy", "trials/000/metrics.json"])
def test_a_folder_of_other_files_is_not_used(recipe, name):
    (recipe.run_folder / name).parent.mkdir(parents=True)
    (recipe.run_folder / name).write_text("precious")
    with pytest.raises(UserError, match="holds files but no run"), open_run(recipe):
        pass


def test_a_trial_that_begins_after_its_run_was_deleted_makes_no_folder(recipe):
    with open_run(recipe) as run:
        trial = Trial({"trial": 1, "parameters": {}}, run.for_workers(), "cpu", {"store": "s"})
        shutil.rmtree(run.path)
        with pytest.raises(UserError, match="was deleted"):
            trial.begin({}, None)
        assert not run.path.exists()


def test_a_deleted_store_is_named(tmp_path):
    write_synthetic_store(tmp_path / "store", crash_commits.WORLD, 100)
    store = open_store(tmp_path / "store")
    shard = store.entry(HERE).shards[0]
    segments = store.segments(shard, "train")
    shutil.rmtree(tmp_path / "store")
    for read in (
        lambda: store.rows(segments), lambda: store.segments(shard, "train"),
        lambda: store.check(shard), lambda: store.train(HERE), lambda: store.read(shard, "train"),
    ):  # fmt: skip
        with pytest.raises(UserError, match="deleted or moved") as told:
            read()
        assert str(tmp_path / "store") in str(told.value)


@pytest.mark.parametrize("error", [UserError("gone"), OSError(28, "No space left", "/x")])
def test_the_code_is_2_before_work_and_1_after(recipe, error, capsys):
    for begins, code in ((False, REFUSED), (True, PARTLY)):
        with open_run(recipe):
            pass

        def command(arguments, begins=begins):
            with told_if_begun(recipe) as begun:
                if begins:
                    begun.mark()
                raise error

        assert run_command(command, []) == code
        said = capsys.readouterr().err
        assert ("--resume" in said) == begins and "Traceback" not in said


def test_an_import_whose_store_is_deleted_is_no_store(tmp_path, monkeypatch, capsys):
    import numpy as np

    np.save(tmp_path / "rows.npy", crash_commits.WORLD.rows(80, 0).numpy())
    out, refuse = tmp_path / "store", target.refuse_deleted

    def deleting(where, entries):
        shutil.rmtree(out)
        refuse(where, entries)

    monkeypatch.setattr("raysae.activations.importing.run.refuse_deleted", deleting)
    given = ["import", tmp_path / "rows.npy", "--out", out, "--layer", 0, "--position", "all"]
    assert run_command(store_command, [str(one) for one in given]) == PARTLY
    assert "was deleted" in capsys.readouterr().err and not (out / "manifest.json").exists()


@pytest.mark.parametrize("exchanges", [True, False])
def test_leftovers_of_killed_processes_go_and_those_of_live_ones_stay(
    tmp_path, exchanges, monkeypatch
):
    if not exchanges:  # as on a network disk
        monkeypatch.setattr("raysae.storage.files.exchange", lambda one, other: False)
    stamp = leftovers._machine()
    dead, live = (f"{stamp}-{process}-0123abcd" for process in (DEAD, os.getpid()))
    for name in (f".a.{dead}.tmp", f".b.{live}.tmp", ".old.0123abcd.tmp", f".page.{dead}.old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x").write_text("x")
    (tmp_path / f".file.{dead}.tmp").write_text("x")
    (tmp_path / ".mine.tmp").write_text("not one of ours")
    remove_temporary(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f".b.{live}.tmp",
        ".mine.tmp",
        "page",
    ]
    with replacing_folder(tmp_path / "page") as temporary:
        (temporary / "x").write_text("new")
    assert (tmp_path / "page" / "x").read_text() == "new"


def test_a_link_is_not_replaced_by_a_folder(tmp_path):
    (tmp_path / "precious").mkdir()
    (tmp_path / "page").symlink_to(tmp_path / "precious")
    with pytest.raises(UserError, match="link"), replacing_folder(tmp_path / "page"):
        pass
    assert (tmp_path / "precious").is_dir()


@pytest.mark.parametrize("hours", [-1, 1])
def test_what_changed_is_sent_whatever_the_clocks_say(tmp_path, monkeypatch, hours):
    monkeypatch.setenv("RAYSAE_CACHE", str(tmp_path / "cache"))
    home = tmp_path / "home"
    here = remote.bind(home.as_uri())
    (here / "status.json").write_text("pending")
    remote.push(here)
    other = time.time() + hours * 3600
    os.utime(home / "status.json", (other, other))
    remote._remotes.clear()  # as another process of this machine
    (here / "status.json").write_text("running")
    remote.push(here)
    assert (home / "status.json").read_text() == "running"
    (here / "status.json").write_text("is done")  # not sent, as the URI was out of reach
    remote._remotes.clear()
    remote.pull(here)
    assert (here / "status.json").read_text() == "is done"


def test_an_eta_and_a_duration_do_not_follow_the_clock(recipe, monkeypatch):
    board, now = Board("work", 4), time.time()
    board.update("one", {}, 1.0)
    with open_run(recipe) as run:
        with run.stage("sweep"):
            monkeypatch.setattr(time, "time", lambda: now - 3600)
        assert 0 <= run.seconds("sweep") < 60
    assert "-" not in board.eta() and "h" not in board.eta()


def as_user(user, work):
    """Do ``work`` in a child of another user; the UserError that it raised, in words."""
    code, told = crash_commits.in_child(lambda: (os.setgid(user), os.setuid(user), work())[0])
    assert "Traceback" not in told
    return code, told


@pytest.fixture
def shared(tmp_path_factory):
    """A run of one user that all may read."""
    if os.getuid() != 0:
        pytest.skip("it takes root to be two users")
    from pathlib import Path
    from tempfile import mkdtemp

    folder = Path(mkdtemp(prefix="raysae-shared-", dir="/tmp"))
    folder.chmod(0o755)
    recipe = parse_recipe({"name": "x", "runs_dir": str(folder), "source": None,
                           "store": "store", "records": {"mlflow": False}})  # fmt: skip
    with open_run(recipe) as run:
        (run.path / "trials").mkdir()
    for path in (folder, *folder.rglob("*")):
        os.chown(path, OWNER, OWNER)
    yield recipe
    shutil.rmtree(folder)


def test_a_run_of_another_user_is_read_but_not_continued(shared):
    def reading():
        assert read_run(shared.run_folder).state("sweep") == "pending"

    def continuing():
        with open_run(shared):
            pass

    before = crash_commits.content(shared.run_folder)
    assert as_user(OTHER, reading)[0] == 0
    code, told = as_user(OTHER, continuing)
    assert code == 1 and "may not write there" in told and str(shared.run_folder) in told
    (shared.run_folder).chmod(0o777)
    code, told = as_user(OTHER, continuing)
    assert code == 1 and str(shared.run_folder / "trials") in told, "refused before any work"
    (shared.run_folder / "trials").chmod(0o777)
    assert as_user(OTHER, continuing)[0] == 0, "the lock is another user's, and readable"
    (shared.run_folder / ".lock").chmod(0o600)
    code, told = as_user(OTHER, continuing)
    assert code == 1 and ".lock" in told
    assert crash_commits.content(shared.run_folder) == before


def test_an_unfinished_error_is_a_user_error():
    with suppress(UserError):
        raise UnfinishedError("it was begun")


def test_files_of_a_run_that_is_not_in_work_are_not_guarded(tmp_path):
    RunFiles(tmp_path).write_json(tmp_path / "a.json", {})
    assert (tmp_path / "a.json").is_file()
