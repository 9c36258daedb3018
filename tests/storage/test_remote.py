"""Runs and stores that live at a URI: worked on in copies, whole at home, taken up on another machine."""

import os
import shutil

import pytest

import raysae
from raysae.activations.synthetic import SuperpositionWorld, write_synthetic_store
from raysae.records.commit import VOLATILE_COLUMNS
from raysae.storage import remote
from raysae.storage.files import read_json, write_json


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A URI, and the folder that it means. Ray's workers have a cache of their own (conftest.py), as on
    another node."""
    monkeypatch.setenv("RAYSAE_CACHE", str(tmp_path / "cache"))
    return f"file://{tmp_path}/home", tmp_path / "home"


def other_machine(tmp_path, monkeypatch, name):
    monkeypatch.setenv("RAYSAE_CACHE", str(tmp_path / name))


def test_names_of_places():
    assert remote.is_uri("s3://b/x") and not remote.is_uri("runs") and not remote.is_uri("C:/x")
    assert remote.join("s3://b/runs?region=eu", "a") == "s3://b/runs/a?region=eu"
    assert remote.split("s3://b/runs/a?region=eu") == ("s3://b/runs?region=eu", "a")
    assert remote.join("runs", "a") == "runs/a"
    inside = remote.local_copy("s3://b/../../x")
    assert inside == remote.local_copy("s3://b/x") and inside.parts[-3:] == ("s3", "b", "x")


def test_what_is_nobodys_copy_is_left_alone(tmp_path):
    (tmp_path / "a").write_text("a")
    remote.push(tmp_path / "a")
    assert not remote.pull(tmp_path / "b") and not remote.is_copy(tmp_path)


def test_files_go_home_and_come_back_elsewhere(home, tmp_path, monkeypatch):
    uri, folder = home
    here = remote.bind(uri)
    (here / "deep" / "one.training").mkdir(parents=True)
    for name in ("deep/a", "deep/last", "deep/z", "deep/.hidden", "deep/one.training/state"):
        (here / name).write_text(name)
    order = []
    upload = remote.RemoteFolder.upload
    monkeypatch.setattr(
        remote.RemoteFolder,
        "upload",
        lambda self, file, place="": (order.append(file.name), upload(self, file, place)),
    )
    remote.push(here, last="last")
    assert order == ["a", "z", "last"]
    remote.push(here)
    (here / "deep" / "z").write_text("another")
    remote.push(here)
    assert order == ["a", "z", "last", "z"], "only what is new"
    remote.push_archive(here / "deep" / "one.training")
    other_machine(tmp_path, monkeypatch, "there")
    there = remote.bind(uri)
    assert remote.pull(there)
    assert sorted(p.name for p in there.rglob("*") if p.is_file()) == [
        ".raysae-home",
        "a",
        "last",
        "z",
    ]
    assert (there / "deep" / "z").read_text() == "another"
    remote.pull_archive(there / "deep" / "one.training")
    assert (there / "deep" / "one.training" / "state").read_text() == "deep/one.training/state"
    remote.discard_archive(there / "deep" / "one.training")
    assert not (folder / "deep" / "one.training.tar").exists()


def test_a_pack_that_was_cut_short_is_no_pack(home, tmp_path, monkeypatch):
    uri, folder = home
    kept = remote.bind(uri) / "one.training"
    kept.mkdir()
    (kept / "state").write_bytes(os.urandom(5000))
    remote.push_archive(kept)
    tar = folder / "one.training.tar"
    tar.write_bytes(tar.read_bytes()[:3000])
    shutil.rmtree(kept)
    remote.pull_archive(kept)
    assert not kept.exists()


def test_two_machines_do_not_drive_one_run(home, tmp_path, monkeypatch):
    uri, folder = home
    here = remote.bind(uri)
    with remote.claimed(here):
        other_machine(tmp_path, monkeypatch, "there")
        monkeypatch.setattr(remote.socket, "gethostname", lambda: "another")
        refused = pytest.raises(raysae.UserError, match=r"process \d+ on .* is working on this run")
        with refused, remote.claimed(remote.bind(uri)):
            pass
        monkeypatch.setattr(remote, "CLAIM_SECONDS", 0)
        with remote.claimed(remote.bind(uri)):
            pass
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("uri", ["s4://bucket/runs", "file:///proc/nothing/runs"])
def test_a_uri_that_cannot_be_used_is_refused(uri, home):
    with pytest.raises(raysae.UserError, match="cannot be reached|could not be written"):
        here = remote.bind(uri)
        (here / "a").write_text("a")
        remote.push(here)


WORLD = SuperpositionWorld(d_in=16, atoms=24, p=0.08)


def test_a_run_at_a_uri_is_taken_up_on_another_machine(connected_ray, home, tmp_path, monkeypatch):
    uri, folder = home
    write_synthetic_store(folder / "store", WORLD, 1500, validation=0.2, test=0.0)
    configs = [{"sae.d_sae": 16, "sae.k": k} for k in (1, 2, 3)]
    recipe = {
        "name": "there", "source": None, "records": {"mlflow": False},
        "store": f"{uri}/store", "runs_dir": f"{uri}/runs",
        "training": {"epochs": 4, "batch_size": 64, "evaluations": 2},
        "sweep": {"sampler": "list", "configs": configs},
        "resources": {"max_concurrent": 1, "reading": "streaming"},
    }  # fmt: skip
    result = raysae.sweep(recipe)
    assert result.failures == []
    at_home = folder / "runs" / "there"
    for name in (
        "config.yaml",
        "trials.parquet",
        "selection.json",
        "report/index.html",
        "sweet_spot/cfg.json",
    ):
        assert (at_home / name).is_file(), name
    assert raysae.load_sae(at_home / "trials" / "001").config.k == 2
    assert not list(at_home.rglob("*.tar")) and not list(at_home.rglob(".*"))

    (at_home / "trials.parquet").unlink()
    shutil.rmtree(at_home / "trials" / "001")
    status = read_json(at_home / "status.json")
    status["stages"]["sweep"] = {"state": "running"}
    write_json(at_home / "status.json", status)
    kept = (at_home / "trials" / "000" / "sae.safetensors").stat().st_mtime_ns
    other_machine(tmp_path, monkeypatch, "there")
    again = raysae.sweep(recipe)
    assert again.folder.is_relative_to(tmp_path / "there") and again.failures == []
    for row, expected in zip(again.trials, result.trials, strict=True):
        for column in expected.keys() - set(VOLATILE_COLUMNS):
            assert row[column] == expected[column]
    assert (at_home / "trials" / "000" / "sae.safetensors").stat().st_mtime_ns == kept
    assert (at_home / "trials" / "001" / "sae.safetensors").is_file()
