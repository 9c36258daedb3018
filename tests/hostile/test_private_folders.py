"""Code, caches and sockets lie in folders that nobody else can change; results are as the umask says."""

import os
import shutil
import stat
from pathlib import Path

import pytest

from raysae.activations.synthetic import SuperpositionWorld, write_synthetic_store
from raysae.cluster import session_folder, token
from raysae.config.loading import load_recipe
from raysae.records.folder import open_run
from raysae.sae.checkpoint import save_sae
from raysae.sae.config import TopKConfig
from raysae.sae.variants import build_sae
from raysae.storage import private
from raysae.training.kernels import build
from tests.hostile.users import ORDINARY, OTHER, as_ordinary_user, user_folder  # noqa: F401

needs_root = pytest.mark.skipif(os.getuid() != 0, reason="another user's files need root")
COMPILER = """#!/bin/sh
while [ "$1" != "-o" ]; do shift; done
echo own > "$2"
"""
"""A compiler whose output shows that it was run: what is planted holds another word."""


@pytest.fixture
def compiler(tmp_path, monkeypatch):
    """The user's folder for caches, and a compiler."""
    file = tmp_path / "c++"
    file.write_text(COMPILER)
    file.chmod(0o755)
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("CXX", str(file))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "deep" / "shared"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    yield tmp_path / "deep" / "shared"
    private.fresh_folder.cache_clear()


def spoil(kind, cache):
    """Let others change the cache folder ``cache``, which holds a library; or plant theirs in it."""
    library = next(cache.glob("topk-*.so"))
    library.write_text("planted")
    if kind == "folder of another":
        os.chown(cache, OTHER, OTHER)
        cache.chmod(0o777)
    elif kind == "library of another":
        os.chown(library, OTHER, OTHER)
        library.chmod(0o755)
    elif kind == "library that others write":
        library.chmod(0o766)
    elif kind == "linked library":
        shutil.move(library, cache.parent / "planted.so")
        library.symlink_to(cache.parent / "planted.so")
    elif kind == "linked folder":
        shutil.move(cache, cache.with_name("away"))
        cache.symlink_to(cache.with_name("away"))
    else:
        (cache if kind == "folder that others write" else cache.parent).chmod(0o777)


SPOILED = (
    "folder of another", "library of another", "library that others write", "linked library",
    "linked folder", "folder that others write", "folder above that others write",
)  # fmt: skip


@pytest.mark.parametrize("kind", SPOILED)
def test_a_library_that_others_could_have_made_is_not_loaded(kind, compiler):
    if os.getuid() != 0 and "of another" in kind:
        pytest.skip("another user's files need root")
    first = build._cache_folder() / build.build(build._cache_folder()).name
    assert first.parent == compiler / "raysae" and first.read_text() == "own\n"
    written = first.stat().st_mtime_ns
    assert build.build(first.parent).stat().st_mtime_ns == written, "it is used again"
    spoil(kind, first.parent)
    for _ in range(2):
        path = build.build(build._cache_folder())
        assert path.read_text() == "own\n" and private.is_own_file(path)
        assert private.flaw(path.parent) is None


@pytest.mark.parametrize("kind", ["folder of another", "loose", "link", "file"])
def test_a_second_place_is_not_trusted_either(kind, compiler):
    """Neither the cache nor the usual temporary folder can be used: a new folder is made."""
    if os.getuid() != 0 and "of another" in kind:
        pytest.skip("another user's files need root")
    for place in (compiler / "raysae", compiler.parents[1] / "tmp" / private.temporary_name()):
        place.parent.mkdir(parents=True, exist_ok=True)
        squat(kind, place)
    path = build.build(build._cache_folder())
    assert path.read_text() == "own\n" and private.flaw(path.parent) is None
    assert path.parent.name not in ("raysae", private.temporary_name())


@pytest.mark.parametrize("umask", [0o000, 0o002, 0o077])
def test_a_library_is_private_whatever_the_umask(umask, compiler):
    before = os.umask(umask)
    try:
        path = build.build(build._cache_folder())
    finally:
        os.umask(before)
    for place in (path, path.parent, path.parent.parent, path.parent.parent.parent):
        assert place.stat().st_mode & 0o777 == 0o700, place


QUIET = """
import os
from raysae.console.quiet import CACHE_VARIABLES, quiet_environment
quiet_environment()
print(*[os.environ[name] for name in CACHE_VARIABLES])
"""
SQUATTED = ("folder of another", "loose", "link", "file", "nothing")


def squat(kind, place):
    """Make what an attacker would make at the place that can be guessed."""
    if kind == "file":
        place.write_text("")
    elif kind == "link":
        place.with_name("away").mkdir()
        place.symlink_to(place.with_name("away"))
    elif kind != "nothing":
        place.mkdir()
        place.chmod(0o777)
    if kind == "folder of another":
        os.chown(place, OTHER, OTHER)


@needs_root
@pytest.mark.parametrize("kind", SQUATTED)
def test_a_temporary_folder_of_known_name_is_not_trusted(kind, user_folder):  # noqa: F811
    shared = user_folder / "tmp"
    shared.mkdir()
    place = shared / f"raysae-{ORDINARY}"
    squat(kind, place)
    shared.chmod(0o1777)
    script = (
        QUIET
        + "\nfrom raysae.storage.private import flaw\nfrom pathlib import Path\n"
        + ("print(*[flaw(Path(os.environ[name]).parent) for name in CACHE_VARIABLES])")
    )
    done = as_ordinary_user(script, user_folder, env={"HOME": "/proc"})
    assert done.returncode == 0, done.stderr
    folders, flaws = done.stdout.splitlines()
    assert set(flaws.split()) == {"None"}
    assert (str(place) in folders) == (kind == "nothing")
    assert len({Path(one).parent for one in folders.split()}) == 1


def test_what_others_could_change_is_named(tmp_path):
    own = tmp_path / "own"
    private.make_private(own)
    assert private.flaw(own) is None and private.exchanged_by(own) is None
    for mode in (0o720, 0o702, 0o777, 0o1777):
        own.chmod(mode)
        assert "can be written by other users" in private.flaw(own)
    own.chmod(0o700)
    tmp_path.chmod(0o770)
    assert str(tmp_path) in private.flaw(own)
    tmp_path.chmod(0o1777)
    assert private.flaw(own) is None, "a sticky folder lets nobody exchange what is another's"
    tmp_path.chmod(0o700)
    assert private.flaw(tmp_path / "not there") and private.flaw(Path(__file__))


def test_a_link_above_is_followed(tmp_path):
    (tmp_path / "loose" / "own").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "loose")
    assert private.flaw(tmp_path / "link" / "own") is None
    (tmp_path / "loose").chmod(0o777)
    assert private.flaw(tmp_path / "link" / "own") is not None
    (tmp_path / "round").symlink_to("round")
    assert private.flaw(tmp_path / "round") is not None


@needs_root
def test_a_link_of_another_user_above_is_not_trusted(tmp_path):
    (tmp_path / "own").mkdir()
    (tmp_path / "link").symlink_to(tmp_path)
    os.chown(tmp_path / "link", OTHER, OTHER, follow_symlinks=False)
    assert private.flaw(tmp_path / "link" / "own") is not None


@pytest.mark.parametrize("variable", ["TMPDIR", "RAY_TMPDIR"])
@pytest.mark.parametrize("kind", SQUATTED)
def test_rays_session_is_closed_to_others(kind, variable, monkeypatch):
    if os.getuid() != 0 and "another" in kind:
        pytest.skip("another user's files need root")
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    shared = Path("/tmp") / f"rs-{os.getpid()}"
    shared.mkdir()
    shared.chmod(0o1777)
    monkeypatch.setenv(variable, str(shared))
    try:
        squat(kind, shared / private.temporary_name())
        folder = Path(session_folder.session_options()["_temp_dir"]).parent
        assert folder.parent == shared and private.flaw(folder) is None
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert not (shared / "ray").exists(), "nobody's Ray finds a folder that is closed to it"
    finally:
        private.fresh_folder.cache_clear()
        shutil.rmtree(shared)


def test_a_closed_folder_for_temporary_files_is_used_itself(monkeypatch):
    own = Path("/tmp") / f"rs-{os.getpid()}-own"
    own.mkdir(mode=0o700)
    monkeypatch.setenv("RAY_TMPDIR", str(own))
    try:
        assert session_folder.session_options() == {"_temp_dir": f"{own}/ray"}
    finally:
        shutil.rmtree(own)


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    for name in (token.MODE, token.TOKEN, token.TOKEN_PATH):
        monkeypatch.setenv(name, "")  # so that what the test sets is taken back
        monkeypatch.delenv(name)
    monkeypatch.setattr(token, "_read_mode_again", lambda: None)
    return tmp_path / "home"


@pytest.mark.parametrize("umask", [0o000, 0o022])
@pytest.mark.parametrize("there", [None, "", "an earlier token, open to all"])
def test_rays_token_is_for_this_user_alone(there, umask, home):
    file = home / ".ray" / "auth_token"
    if there is not None:
        file.parent.mkdir()
        file.write_text(there)
        file.chmod(0o644)
    before = os.umask(umask)
    try:
        token.use_token(starting=True)
    finally:
        os.umask(before)
    assert file.stat().st_mode & 0o777 == 0o600 and file.read_text()
    assert file.read_text() == there or len(file.read_text()) == 64
    assert [one.name for one in file.parent.iterdir()] == ["auth_token"]
    assert os.environ[token.MODE] == "token" and token.TOKEN not in os.environ


def test_no_token_is_saved_where_none_is_used(home, monkeypatch):
    monkeypatch.setenv(token.MODE, "disabled")
    token.use_token(starting=True)
    token.use_token(starting=False)
    assert not (home / ".ray").exists()


@pytest.mark.parametrize("umask", [0o002, 0o027, 0o077])
def test_results_are_as_the_umask_says(umask, tmp_path, monkeypatch):
    monkeypatch.setenv("RAYSAE_CACHE", str(tmp_path / "cache"))
    (tmp_path / "there").mkdir(mode=0o755)
    before = os.umask(umask)
    try:
        made = list(results(tmp_path))
    finally:
        os.umask(before)
    for path in [*made, *(below for one in made for below in one.rglob("*"))]:
        wanted = 0o777 if path.is_dir() else 0o666
        assert oct(path.stat().st_mode & 0o777) == oct(wanted & ~umask), path
    assert len([path for one in made for path in one.rglob("*.safetensors")]) == 4


def results(folder):
    """Make a store and a run, and a run at a URI; yields their folders."""
    world = SuperpositionWorld(d_in=8, atoms=12, p=0.1)
    write_synthetic_store(folder / "store", world, 200, validation=0.2, test=0.0)
    yield folder / "store"
    sae = build_sae(TopKConfig(d_sae=16, k=2), 8)
    for place in (folder / "runs", f"file://{folder}/there"):
        with open_run(load_recipe(None, ["name=x", f"runs_dir={place}"])) as run:
            save_sae(sae, run.path / "trials" / "000", {}, metrics={})
            run.write_table(run.path / "trials.parquet", [{"a": 1}])
            with run.replacing_folder(run.path / "report") as page:
                (page / "index.html").write_text("page")
            (run.path / "trials" / "001.training").mkdir()
            run.send_checkpoint(run.path / "trials" / "001.training")
            run.send()
    yield from (folder / "runs" / "x", folder / "there" / "x")


LISTENING = """
import os, sys
from pathlib import Path
from raysae.cluster.session import ray_session
from raysae.config import ResourcesConfig

def own_processes():
    parents = {}
    for file in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(file.parent.name)] = int(file.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    own = {os.getpid()}
    while more := {one for one, parent in parents.items() if parent in own} - own:
        own |= more
    return own

def listening():
    own = set()
    for process in own_processes():
        try:
            for handle in Path("/proc", str(process), "fd").iterdir():
                own.add(os.readlink(handle))
        except OSError:
            continue
    for table in ("tcp", "tcp6"):
        for line in Path("/proc/net", table).read_text().splitlines()[1:]:
            words = line.split()
            if words[3] == "0A" and f"socket:[{words[9]}]" in own:
                yield words[1].rpartition(":")[0]

with ray_session(ResourcesConfig(cpus=1)):
    import ray
    assert ray.get(ray.remote(lambda: "ran").remote(), timeout=300) == "ran"
    node = ray._private.worker.global_worker.node
    session = Path(node.get_session_dir_path())
    print(*sorted(set(listening())))
    closed = session.parent.parent.stat()
    print(oct(closed.st_mode & 0o777), closed.st_uid == os.getuid())
    print(node.node_ip_address)
"""
LOOPBACK = {"0100007F", "0000000000000000FFFF00000100007F"}
"""127.0.0.1 in /proc/net/tcp and in /proc/net/tcp6."""


@pytest.mark.long
@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="sockets are listed on Linux alone")
def test_a_ray_that_is_started_here_cannot_be_reached_from_elsewhere(user_folder):  # noqa: F811
    done = as_ordinary_user(LISTENING, user_folder, timeout=300)
    assert done.returncode == 0, done.stderr
    sockets, folder, address = done.stdout.splitlines()[-3:]
    assert sockets and set(sockets.split()) <= LOOPBACK
    assert folder == "0o700 True" and address == "127.0.0.1"
    assert (user_folder / "home/.ray/auth_token").stat().st_mode & 0o777 == 0o600
