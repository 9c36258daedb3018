"""Imports into a store at a URI: the same bytes as into a folder, a shard at a time, begun again."""

import json

import numpy as np
import pytest

import raysae
from raysae.activations.importing.run import import_activations
from raysae.activations.store_command import main as store_command
from raysae.activations.verify import verify
from raysae.errors import UserError
from raysae.sites import Site
from raysae.storage import retries
from tests.storage.faulty import FaultyFileSystem

URI = "faulty://bucket/store"


@pytest.fixture(autouse=True)
def quick(tmp_path, monkeypatch):
    monkeypatch.setattr(retries, "WAITS", (0.0, 0.0, 0.0, 0.0))
    monkeypatch.setenv("RAYSAE_CACHE", str(tmp_path / "cache"))
    FaultyFileSystem.reset()


@pytest.fixture
def rows(tmp_path):
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(3000, 16)).astype("float32"))
    return tmp_path / "x.npy"


def content(folder):
    return {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()
    }


def there(prefix="/bucket/store/"):
    return {
        path.removeprefix(prefix): file.getvalue()
        for path, file in FaultyFileSystem.store.items()
        if path.startswith(prefix)
    }


def shards_here(cache):
    return [path for path in cache.rglob("*.parquet") if path.is_file()]


def test_the_store_is_the_same_to_the_byte(rows, tmp_path, capsys):
    arguments = ["--layer", "3", "--position", "all", "--shard-rows", "500"]
    assert store_command(["import", str(rows), "--out", str(tmp_path / "s"), *arguments]) == 0
    assert store_command(["import", str(rows), "--out", URI, *arguments]) == 0
    assert f"Store: {URI}" in capsys.readouterr().out
    assert there() == content(tmp_path / "s")
    assert verify(URI) == [] and raysae.open_store(URI).sites == [Site(3, "all")]
    assert shards_here(tmp_path / "cache") == []


def test_at_most_a_shard_lies_here(rows, tmp_path, monkeypatch):
    most = []
    write = FaultyFileSystem._open

    def opened(self, path, mode="rb", **kwargs):
        most.append(len(shards_here(tmp_path / "cache")))
        return write(self, path, mode, **kwargs)

    monkeypatch.setattr(FaultyFileSystem, "_open", opened)
    import_activations(rows, URI, layer=0, position="all", shard_rows=300)
    assert max(most) == 1
    names = list(there())
    assert names[-1] == "manifest.json", "it is written last"


def test_a_site_is_added_to_a_store_there(rows, tmp_path, monkeypatch):
    for out in (URI, tmp_path / "s"):
        import_activations(rows, out, layer=0, position="all", shard_rows=1000)
    monkeypatch.setenv("RAYSAE_CACHE", str(tmp_path / "another"))
    for out in (URI, tmp_path / "s"):
        import_activations(rows, out, layer=1, position="all")
    assert there() == content(tmp_path / "s")
    with pytest.raises(UserError, match=r"faulty://bucket/store: the store has .*already"):
        import_activations(rows, URI, layer=1, position="all")
    with pytest.raises(UserError, match=r"faulty://bucket/store: sites can be added only"):
        import_activations(rows, URI, layer=2, position="all", seed=4)


def test_one_that_broke_off_is_begun_again(rows, tmp_path, monkeypatch):
    import_activations(rows, tmp_path / "s", layer=0, position="all", shard_rows=500)
    FaultyFileSystem.fail_writes = 2
    upload, sent = FaultyFileSystem._open, []

    def opened(self, path, mode="rb", **kwargs):
        if mode == "wb" and path.endswith("part-00003.parquet"):
            sent.append(path)
            raise ConnectionError("the connection was reset")
        return upload(self, path, mode, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(FaultyFileSystem, "_open", opened)
        with pytest.raises(UserError, match=r"part-00003.parquet could not be written there"):
            import_activations(rows, URI, layer=0, position="all", shard_rows=500)
    assert len(sent) == 5, "five tries"
    assert "manifest.json" not in there() and json.loads(there()[".import/sites.json"])
    with pytest.raises(UserError, match="no manifest.json"):
        raysae.open_store(URI)
    monkeypatch.setenv("RAYSAE_CACHE", str(tmp_path / "another machine"))
    import_activations(rows, URI, layer=0, position="all", shard_rows=500)
    assert there() == content(tmp_path / "s")


def test_files_of_others_are_left_alone(rows):
    FaultyFileSystem().pipe_file("/bucket/store/notes.txt", b"x")
    with pytest.raises(
        UserError, match=r"faulty://bucket/store: holds files but no activation store"
    ):
        import_activations(rows, URI, layer=0, position="all")
    assert there() == {"notes.txt": b"x"}
