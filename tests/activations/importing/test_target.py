"""Adding to a store, what is refused, and what an interrupted import leaves: never half a site."""

import json
import signal
import subprocess
import sys

import numpy as np
import pytest

from raysae.activations import open_store
from raysae.activations.importing.run import import_activations
from raysae.activations.importing.target import SITES_FILE, WORK_FOLDER, taking_in
from raysae.activations.synthetic import SuperpositionWorld, write_synthetic_store
from raysae.activations.writer import write_store
from raysae.errors import UserError
from raysae.sites import Site
from tests.activations.importing.foreign import FORMATS, order, places, rows_of, stored

OPTIONS = {"position": "all", "shard_rows": 64, "hookpoint": "resid_post", "model": "gpt2"}


def bring(tmp_path, layer, dtype="float32", **options):
    file = FORMATS["npy matrix"].write(tmp_path, rows_of(dtype, seed=layer))
    return import_activations(file, tmp_path / "s", layer=layer, **{**OPTIONS, **options})


def content(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_store_grows_site_by_site(tmp_path):
    for layer in (4, 0, 2):
        bring(tmp_path, layer, shard_rows=64 if layer == 4 else None)
    store = open_store(tmp_path / "s")
    assert store.sites == [Site(0, "all"), Site(2, "all"), Site(4, "all")]
    assert len(store.manifest.source["imports"]) == 3
    for layer in (0, 2, 4):
        assert stored(store, Site(layer, "all")) == places(rows_of("float32", seed=layer), "row")
        assert order(tmp_path / "s", Site(layer, "all")) == order(tmp_path / "s", Site(0, "all"))
    assert {path.name for path in (tmp_path / "s").iterdir()} == {
        "manifest.json", "layer=00", "layer=02", "layer=04",
    }  # fmt: skip


def test_shards_of_another_size_are_noted(tmp_path):
    bring(tmp_path, 0)
    assert "another order" in bring(tmp_path, 1, shard_rows=50).notes[0]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"dtype": "float16"}, "dtype: the store has float32, this import float16 .--dtype"),
        ({"validation": 0.2}, "split: the store has .*--validation and --test"),
        ({"seed": 1}, "seed: the store has 0, this import 1 .--seed"),
        ({"hookpoint": "mlp_out"}, "hookpoint: the store has resid_post, this import mlp_out"),
        ({"hookpoint": None}, "hookpoint: the store has resid_post, this import unknown"),
        ({"model": "gpt2-xl"}, "model: the store has gpt2, this import gpt2-xl"),
        ({"dataset": "pile"}, "dataset: the store has None, this import pile"),
        ({"layer": 0}, "has layer 0, position all already"),
    ],
)
def test_what_differs_from_the_store_is_refused(tmp_path, options, words):
    bring(tmp_path, 0)
    before = content(tmp_path / "s")
    with pytest.raises(UserError, match=words):
        bring(tmp_path, options.pop("layer", 1), **options)
    assert content(tmp_path / "s") == before


def test_another_d_in_is_refused(tmp_path):
    bring(tmp_path, 0)
    np.save(tmp_path / "wide.npy", np.zeros((9, 16), np.float32))
    with pytest.raises(UserError, match="d_in: the store has 8, this import 16"):
        import_activations(tmp_path / "wide.npy", tmp_path / "s", layer=1, **OPTIONS)


def synthetic(folder):
    write_synthetic_store(folder, SuperpositionWorld(d_in=8, atoms=8), 50)


def from_a_model(folder):
    write_store(
        folder, {Site(0, 0): rows_of("float32")}, provenance="imported", source={},
        split={"validation": 0.1, "test": 0.1},
    )  # fmt: skip
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, "provenance": "model"}))


def a_folder_of_files(folder):
    (folder / "layer=01").mkdir(parents=True)
    (folder / "layer=01" / "mine.txt").write_text("mine")


def an_extraction_under_way(folder):
    (folder / "extraction").mkdir(parents=True)
    (folder / "extraction" / "identity.json").write_text("{}")


def a_file(folder):
    folder.write_text("mine")


@pytest.mark.parametrize(
    ("there", "words"),
    [
        (synthetic, "not made by an import .its provenance is 'synthetic'"),
        (from_a_model, "not made by an import .its provenance is 'model'"),
        (a_folder_of_files, "holds files but no activation store"),
        (an_extraction_under_way, "holds files but no activation store"),
        (a_file, "is a file"),
    ],
)
def test_what_is_not_ours_is_left_untouched(tmp_path, there, words):
    there(tmp_path / "s")
    before = content(tmp_path)
    np.save(tmp_path / "acts.npy", np.zeros((9, 8), np.float32))
    with pytest.raises(UserError, match=words):
        import_activations(tmp_path / "acts.npy", tmp_path / "s", layer=1, position=0)
    (tmp_path / "acts.npy").unlink()
    assert content(tmp_path) == before


class Stop(Exception):
    """An interruption."""


def stop_after(rows):
    def progress(stage, done, total):
        if stage == "writing" and done >= rows:
            raise Stop

    return progress


def test_an_interrupted_import_is_no_store_and_the_next_one_takes_its_place(tmp_path):
    with pytest.raises(Stop):
        bring(tmp_path, 5, shard_rows=20, progress=stop_after(200))
    assert list((tmp_path / "s").rglob("part-*.parquet"))
    with pytest.raises(UserError, match="no manifest.json"):
        open_store(tmp_path / "s")
    bring(tmp_path, 6)
    store = open_store(tmp_path / "s")
    assert store.sites == [Site(6, "all")]
    assert stored(store, Site(6, "all")) == places(rows_of("float32", seed=6), "row")
    assert {path.name for path in (tmp_path / "s/layer=05").rglob("*.parquet")} == set()


def test_an_interrupted_addition_leaves_the_store_as_it_was(tmp_path):
    bring(tmp_path, 0)
    before = open_store(tmp_path / "s").digest
    with pytest.raises(Stop):
        bring(tmp_path, 1, shard_rows=20, progress=stop_after(200))
    assert open_store(tmp_path / "s").digest == before
    bring(tmp_path, 1)
    store = open_store(tmp_path / "s")
    assert store.sites == [Site(0, "all"), Site(1, "all")]
    written = {str(path.relative_to(tmp_path / "s")) for path in (tmp_path / "s").rglob("part-*")}
    listed = {shard.file for entry in store.manifest.sites for shard in entry.shards}
    assert written == listed
    assert not (tmp_path / "s" / WORK_FOLDER).exists()


KILLED = """
import os, signal, sys
from raysae.activations.importing.run import import_activations

def progress(stage, done, total):
    if stage == "writing" and done >= 200:
        os.kill(os.getpid(), signal.SIGKILL)

import_activations(sys.argv[1], sys.argv[2], layer=3, position="all", shard_rows=20,
                   progress=progress)
"""


def test_a_killed_import_is_done_anew_by_the_same_command(tmp_path):
    file = FORMATS["parquet fixed lists"].write(tmp_path, rows_of("float32"))
    command = [sys.executable, "-c", KILLED, str(file), str(tmp_path / "s")]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    assert (tmp_path / "s" / WORK_FOLDER / SITES_FILE).exists()
    assert not (tmp_path / "s" / "manifest.json").exists()
    assert {path.name for path in tmp_path.iterdir()} == {"acts.parquet", "s"}, "scratch is gone"
    import_activations(file, tmp_path / "s", layer=3, position="all")
    found = stored(tmp_path / "s", Site(3, "all"))
    assert found == places(rows_of("float32"), "row")


def test_a_hostile_marker_removes_nothing_else(tmp_path):
    (tmp_path / "precious").mkdir()
    (tmp_path / "s" / WORK_FOLDER).mkdir(parents=True)
    (tmp_path / "s" / WORK_FOLDER / SITES_FILE).write_text('["../precious", "layer=01/../..", 3]')
    bring(tmp_path, 0)
    assert (tmp_path / "precious").is_dir()
    assert open_store(tmp_path / "s").sites == [Site(0, "all")]


def test_two_imports_into_one_store_at_a_time_are_refused(tmp_path):
    bring(tmp_path, 0)
    with (
        taking_in(tmp_path / "s", [Site(1, "all")]),
        pytest.raises(UserError, match="is working on this store"),
    ):
        bring(tmp_path, 2)
    bring(tmp_path, 2)
    assert open_store(tmp_path / "s").sites == [Site(0, "all"), Site(2, "all")]


def test_sequences_too_few_for_a_split_are_noted(tmp_path):
    np.save(tmp_path / "acts.npy", np.ones((3, 8), np.float32))
    done = import_activations(tmp_path / "acts.npy", tmp_path / "s", layer=1, position=0)
    assert any("has no validation rows: too few sequences" in note for note in done.notes)
