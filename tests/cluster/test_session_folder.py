"""Ray's session folder: short and plain enough for sockets, whatever TMPDIR is."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from raysae.cluster import session_folder as place
from raysae.errors import UserError


@pytest.fixture(autouse=True)
def own_folders(monkeypatch):
    monkeypatch.delenv("RAY_TMPDIR", raising=False)


ODD = {
    "long": "a" * 70, "not ascii": "café", "with a space": "a b", "quoted": "it's", "a variable": "$HOME",
}  # fmt: skip


@pytest.mark.parametrize("variable", ["TMPDIR", "RAY_TMPDIR"])
@pytest.mark.parametrize("kind", ODD)
def test_a_folder_that_holds_no_sockets_is_not_taken(kind, variable, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv(variable, str(tmp_path / ODD[kind]))
    folder = place.session_folder()["_temp_dir"]
    assert place.unfit(Path(folder)) is None and Path(folder).stat().st_uid == os.getuid()
    assert f"Ray's session is in {folder}, as {variable} " in capsys.readouterr().out


@pytest.mark.parametrize("name", ["/etc/hostname/x", "relative"])
def test_a_folder_that_cannot_be_made_is_not_taken(name, monkeypatch):
    monkeypatch.setenv("TMPDIR", name)
    assert place.session_folder().keys() == {"_temp_dir"}


def test_rays_own_choice_stays_where_it_works(monkeypatch, capsys):
    monkeypatch.setenv("TMPDIR", "/tmp")
    assert place.session_folder() == {} and capsys.readouterr().out == ""
    monkeypatch.delenv("TMPDIR")
    assert place.session_folder() == {}


def test_where_nothing_works_the_mend_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path / "café"))
    monkeypatch.setattr(place, "OTHERS", (str(tmp_path / "é"),))
    with pytest.raises(
        UserError, match="TMPDIR is .*; set RAY_TMPDIR to a folder of at most 3. plain"
    ):
        place.session_folder()


def test_the_longest_folder_that_is_taken_holds_a_socket(tmp_path):
    room = place.LONGEST_SOCKET - place.IN_THE_FOLDER
    folder = Path("/tmp") / ("a" * (room - len("/tmp/")))
    try:
        assert place.unfit(folder) is None
        assert place.unfit(folder.with_name(f"{folder.name}a")) is not None
        path = f"{folder}/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store.1"
        Path(path).parent.mkdir(parents=True)
        with socket.socket(socket.AF_UNIX) as one:
            one.bind(path)
        os.unlink(path)
        for made in Path(path).parents[:2]:
            made.rmdir()
    finally:
        folder.rmdir()


PROGRAM = """
from raysae.cluster.session import ray_session
from raysae.config import ResourcesConfig

with ray_session(ResourcesConfig(cpus=1)):
    import ray

    print(ray.get(ray.remote(lambda: "ran").remote(), timeout=300))
"""


def test_ray_starts_there(tmp_path):
    odd = {"TMPDIR": str(tmp_path / ("é" * 60))}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env={**os.environ, **odd}, capture_output=True, text=True,
        check=False, timeout=600,
    )  # fmt: skip
    assert done.stdout.splitlines()[-1:] == ["ran"], done.stderr
