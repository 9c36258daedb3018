"""Files that are opened by a known name: no link is followed, nothing else than a file is written to."""

import os
import shutil
import socket
import sqlite3
from pathlib import Path
from types import SimpleNamespace

import pytest

from raysae.cluster.alarm import HangAlarm
from raysae.config.loading import load_recipe
from raysae.errors import UserError
from raysae.extraction.shards import ShardProgress, tokens_file
from raysae.records import mlflow_refusal
from raysae.records.folder import open_run
from raysae.records.mlflow_listener import tracking_uri
from raysae.storage import files, leftovers, remote
from tests.hostile.users import as_ordinary_user, user_folder  # noqa: F401

PRECIOUS = (
    "precious, and longer than what would be written over it: process 1 on a host of some name"
)


@pytest.fixture
def victim(tmp_path):
    """A file that nothing here may change."""
    file = tmp_path / "victim.txt"
    file.write_text(PRECIOUS)
    yield file
    assert file.read_text() == PRECIOUS and not (tmp_path / "not-there").exists()


def put(kind, place, victim):
    """Put what is no file of raysae's own at ``place``."""
    place.parent.mkdir(parents=True, exist_ok=True)
    if kind == "link":
        place.symlink_to(victim)
    elif kind == "link to nothing":
        place.symlink_to(victim.with_name("not-there"))
    elif kind == "link to a device":
        place.symlink_to("/dev/null")
    elif kind == "second name":
        os.link(victim, place)
    elif kind == "pipe":
        os.mkfifo(place)
    elif kind == "folder":
        place.mkdir()
    else:
        with socket.socket(socket.AF_UNIX) as one:
            here = os.getcwd()
            os.chdir(place.parent)
            one.bind(place.name)
            os.chdir(here)


KINDS = ("link", "link to nothing", "link to a device", "second name", "pipe", "folder", "socket")


def lock(folder):
    with files.locked(folder / ".lock", "this", "wait"):
        pass


def run_lock(folder):
    recipe = load_recipe(None, ["name=x", f"runs_dir={folder}"])
    if not (folder / "x" / "config.yaml").exists():
        with open_run(load_recipe(None, ["name=y", f"runs_dir={folder}"])):
            pass
        (folder / "x").mkdir(exist_ok=True)
        for name in ("config.yaml", "status.json"):
            shutil.copy(folder / "y" / name, folder / "x" / name)
    with open_run(recipe):
        pass


def import_lock(folder):
    from raysae.activations.importing.target import taking_in
    from raysae.sites import Site

    with taking_in(folder, [Site(0, "all")]):
        pass


def fetching(folder):
    (folder / "home").mkdir(exist_ok=True)
    remote.fetched(f"file://{folder}/home")


def alarm(folder):
    one = HangAlarm(folder / "trial.hung.txt", 100.0)
    try:
        one.set()
    finally:
        one.cancel()


def progress(folder):
    ShardProgress(folder, 0, lambda: None)(5)


WRITERS = {
    ".lock": lock, "x/.lock": run_lock, ".import/lock": import_lock, "trial.hung.txt": alarm,
    tokens_file(Path(), 0).name: progress, "cache/file/{folder}/home/.fetching": fetching,
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", WRITERS)
def test_what_is_no_own_file_is_refused(name, kind, tmp_path, victim, monkeypatch):
    monkeypatch.setenv("RAYSAE_CACHE", str(tmp_path / "folder" / "cache"))
    folder = tmp_path / "folder"
    folder.mkdir()
    if name.startswith("cache"):
        (folder / "home").mkdir()
        remote.bind(f"file://{folder}/home")
    put(kind, folder / name.format(folder=str(folder)[1:]), victim)
    with pytest.raises(UserError, match="is a link to|is no file|second name|cannot be opened"):
        WRITERS[name](folder)


@pytest.mark.parametrize("name", WRITERS)
def test_an_own_file_is_used_again(name, tmp_path, monkeypatch):
    monkeypatch.setenv("RAYSAE_CACHE", str(tmp_path / "cache"))
    (tmp_path / "folder").mkdir()
    for _ in range(2):
        WRITERS[name](tmp_path / "folder")


def test_a_lock_names_its_process(tmp_path):
    (tmp_path / ".lock").write_text("a much longer line of an earlier process, which is replaced")
    with files.locked(tmp_path / ".lock", "this", "wait"):
        text = f"process {os.getpid()} on {socket.gethostname()}"
        assert (tmp_path / ".lock").read_text() == text
        refused = pytest.raises(UserError, match=f"{text} is working on this; .*or wait")
        with refused, files.locked(tmp_path / ".lock", "this", "wait"):
            pass


def test_a_lock_that_may_only_be_read_locks_and_stays_as_it_is(user_folder):  # noqa: F811
    (user_folder / ".lock").write_text("process 1 on other")
    code = f"""
import os
from pathlib import Path
from raysae.errors import UserError
from raysae.storage.files import locked
file = Path({str(user_folder / ".lock")!r})
file.chmod(0o444)
try:
    with locked(file, "this", "wait"):
        print("taken")
except UserError as error:
    print(error)
"""
    done = as_ordinary_user(code, user_folder)
    assert done.stdout == "taken\n", done.stderr
    assert (user_folder / ".lock").read_text() == "process 1 on other"


@pytest.mark.parametrize("kind", ["link", "link to nothing", "pipe", "folder"])
def test_a_temporary_name_that_was_guessed_is_not_written_to(kind, tmp_path, victim, monkeypatch):
    monkeypatch.setattr(leftovers.uuid, "uuid4", lambda: SimpleNamespace(hex="0" * 32))
    put(kind, leftovers.temporary_path(tmp_path / "file"), victim)
    with pytest.raises(OSError):
        files.write_text(tmp_path / "file", "new")
    assert not (tmp_path / "file").exists()


def test_a_temporary_name_is_hard_to_guess(tmp_path):
    with files.replacing(tmp_path / "file") as temporary:
        assert len(temporary.name) >= len(".file..tmp") + 32 and temporary.is_file()
        temporary.write_text("new")
    assert (tmp_path / "file").read_text() == "new"


@pytest.mark.parametrize("how", [files.remove_folder, "replace", "temporary"])
def test_removing_a_link_leaves_what_it_leads_to(how, tmp_path, victim):
    away = tmp_path / "away"
    away.mkdir()
    (away / ".x.1.tmp").write_text("kept")
    (tmp_path / "folder").mkdir()
    link = tmp_path / "folder" / "link"
    link.symlink_to(away)
    if how == "replace":
        with pytest.raises(UserError, match="is a link"), files.replacing_folder(link):
            raise AssertionError("it began")
        link.unlink()
    elif how == "temporary":
        files.remove_temporary(tmp_path / "folder")
    else:
        how(link)
        assert not link.is_symlink()
    assert (away / ".x.1.tmp").read_text() == "kept"


def test_a_database_beside_the_runs_that_is_a_link_is_not_written(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    other = tmp_path / "other.db"
    with sqlite3.connect(other) as database:
        database.execute("CREATE TABLE precious (x)")
    before = other.read_bytes()
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "mlflow.db").symlink_to(other)
    with open_run(load_recipe(None, ["name=x", f"runs_dir={tmp_path}/runs"])) as run:
        uri = tracking_uri(run)
    with pytest.raises(mlflow_refusal.Refused, match="is a link to .*records.tracking_uri"):
        mlflow_refusal.check_file(uri)
    assert other.read_bytes() == before
