"""Extraction to a URI: the bytes of a local extraction, resumed by another machine, nothing kept here."""

import shutil

import pytest

import raysae
import raysae.extraction.run as run_module
from raysae.activations.verify import verify
from raysae.cluster.later import finished
from raysae.cluster.placement import Placement
from raysae.cluster.pool_worker import Outcome
from raysae.config import load_recipe
from raysae.config.loading import load_to_continue
from raysae.errors import UserError
from raysae.extraction.plan import existing_store, plan_extraction
from raysae.extraction.run import extract
from raysae.records.folder import open_run
from raysae.storage import retries
from tests.storage.faulty import FaultyFileSystem

URI = "faulty://bucket/store"


def recipe_of(store, *overrides):
    return load_recipe(
        None,
        [
            f"store={store}", "source.sequences=60", "source.sequences_per_shard=16",
            "source.layers=[0, 3]", "source.positions=[-1, 0]", "source.validation=0.3", *overrides,
        ],
    )  # fmt: skip


def extracted(recipe):
    plan = plan_extraction(recipe)
    assert existing_store(plan) is None
    return extract(plan, Placement(cpus=1, gpus=0, workers=2), recipe.resources)


def content(folder):
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def there(prefix="/bucket/store/"):
    return {
        path.removeprefix(prefix): file.getvalue()
        for path, file in FaultyFileSystem.store.items()
        if path.startswith(prefix)
    }


@pytest.fixture(autouse=True)
def machine(tmp_path, monkeypatch):
    monkeypatch.setattr(retries, "WAITS", (0.0, 0.0, 0.0, 0.0))
    monkeypatch.setenv("RAYSAE_CACHE", str(tmp_path / "cache"))
    FaultyFileSystem.reset()


@pytest.fixture(scope="module")
def local(connected_ray, tmp_path_factory):
    """The store in a folder, extracted by Ray."""
    return extracted(recipe_of(tmp_path_factory.mktemp("local") / "s")).path


@pytest.fixture
def here(monkeypatch):
    """The pool in this process, as the file system of these tests is in its memory: a list of the
    shards that are made. After ``here.stop`` shards the process is killed."""

    class Made(list):
        stop = 1000

    made = Made()

    def in_this_process(items, work, *, committed, **options):
        worker = None
        for shard in items:
            if committed(shard) is None:
                if len(made) >= made.stop:
                    raise KeyboardInterrupt
                worker = worker or work.make(*work.arguments)
                finished(worker.do(shard, lambda: None))
                made.append(shard)
            yield shard, Outcome(committed(shard))

    monkeypatch.setattr(run_module, "map_committed", in_this_process)
    return made


def test_workers_share_nothing_but_the_uri(local, tmp_path):
    """Ray's workers have a cache of their own (conftest.py), as on another node."""
    store = extracted(recipe_of(f"file://{tmp_path}/home/s"))
    assert content(tmp_path / "home" / "s") == content(local)
    assert store.uri == f"file://{tmp_path}/home/s" and verify(store.uri) == []
    assert not list((tmp_path / "cache").rglob("*.parquet"))
    assert not list((tmp_path / "cache").rglob("*.json")), "no records are left"


def test_another_machine_resumes(local, here, tmp_path, monkeypatch):
    here.stop = 2
    with pytest.raises(KeyboardInterrupt):
        extracted(recipe_of(URI))
    assert here == [0, 1] and "manifest.json" not in there()
    assert {name for name in there() if name.startswith("extraction/")} == {
        "extraction/identity.json", "extraction/sequences.json", "extraction/shard-00000.json",
        "extraction/shard-00001.json",
    }  # fmt: skip
    with pytest.raises(UserError, match="no manifest.json, so this is not a finished"):
        raysae.open_store(URI)
    with pytest.raises(UserError, match=r"unfinished extraction of another source(.|\n)*sequences"):
        existing_store(plan_extraction(recipe_of(URI, "source.sequences=50")))
    FaultyFileSystem.written.clear()
    monkeypatch.setenv("RAYSAE_CACHE", str(tmp_path / "another"))
    here.stop = 1000
    store = extracted(recipe_of(URI))
    assert here == [0, 1, 2, 3]
    assert not any("part-00001" in path for path in FaultyFileSystem.written), "not made twice"
    assert there() == content(local)
    assert list(there())[-1] == "manifest.json" and verify(URI) == []
    assert existing_store(plan_extraction(recipe_of(URI))).digest == store.digest


def test_a_shard_at_a_time_lies_here(local, here, tmp_path, monkeypatch):
    most, write = [], FaultyFileSystem._open

    def opened(self, path, mode="rb", **kwargs):
        most.append(sum(p.is_file() for p in (tmp_path / "cache").rglob("*.parquet")))
        return write(self, path, mode, **kwargs)

    monkeypatch.setattr(FaultyFileSystem, "_open", opened)
    extracted(recipe_of(URI))
    assert max(most) == 1 and there() == content(local)


def test_a_shard_that_was_lost_there_is_made_again(local, here):
    here.stop = 3
    with pytest.raises(KeyboardInterrupt):
        extracted(recipe_of(URI))
    lost = next(name for name in there() if name.startswith("layer=03") and "part-00001" in name)
    FaultyFileSystem().rm(f"/bucket/store/{lost}")
    here.stop = 1000
    extracted(recipe_of(URI))
    assert here == [0, 1, 2, 1, 3] and there() == content(local)


def test_writes_that_fail_are_tried_again(local, here):
    FaultyFileSystem.fail_writes = 3
    extracted(recipe_of(URI))
    assert there() == content(local)


def test_what_is_refused_leaves_nothing(here):
    with pytest.raises(UserError, match="read more of the data set|too few|no validation"):
        extracted(recipe_of(URI, "source.sequences=2", "source.validation=0.0001"))
    assert there() == {}


def test_another_recipe_takes_the_place_of_one_without_shards(local, here):
    here.stop = 0
    with pytest.raises(KeyboardInterrupt):
        extracted(recipe_of(URI, "source.sequences=50"))
    here.stop = 1000
    extracted(recipe_of(URI))
    assert there() == content(local)


def test_places_of_others_are_left_alone(local, here):
    FaultyFileSystem().pipe_file("/bucket/store/notes.txt", b"x")
    with pytest.raises(
        UserError, match=r"faulty://bucket/store: holds files but no activation store"
    ):
        extracted(recipe_of(URI))
    assert there() == {"notes.txt": b"x"}
    FaultyFileSystem.reset()
    FaultyFileSystem.put(local, "/bucket/store")
    with pytest.raises(UserError, match=r"faulty://bucket/store: holds a store made from another"):
        existing_store(plan_extraction(recipe_of(URI, "source.layers=[1]")))


def test_a_handed_over_recipe_extracts_to_no_uri(tmp_path, monkeypatch):
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    with open_run(
        load_recipe(None, ["name=x", f"store={URI}", f"runs_dir={tmp_path}/runs"])
    ) as made:
        path = made.path
    shutil.move(tmp_path / "runs", tmp_path / "mine")
    with pytest.raises(UserError, match=rf"there is none in {URI}; give the place in the command"):
        load_to_continue(tmp_path / "mine" / path.name)
    assert there() == {}
