"""Hostile stores, SAEs, imports and texts: one message each, before any work, and never a hang."""

import json
import os
import shutil
import socket
import unicodedata
from pathlib import Path

import numpy as np
import pytest

import raysae
from raysae.activations import Site, store_command
from raysae.activations.importing.run import import_activations
from raysae.activations.synthetic import SuperpositionWorld, write_synthetic_store
from raysae.activations.verify import verify
from raysae.console.command_line import REFUSED, run_command
from raysae.errors import UserError
from raysae.sae.config import sae_config
from raysae.sae.interchange import FORMATS
from raysae.sae.variants import build_sae
from raysae.transformer.texts import TextSpec, read_documents
from tests.activations.edits import edit
from tests.hostile.saes import D_IN, D_SAE, saved

FOLDER = "layer=00/position=all"
SHARD, SECOND = f"{FOLDER}/part-00000.parquet", f"{FOLDER}/part-00001.parquet"


# Stores


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    folder = tmp_path_factory.mktemp("damage") / "s"
    write_synthetic_store(folder, SuperpositionWorld(4, 8), 60, sites=2, shard_rows=30)
    return folder


@pytest.fixture
def store(sound, tmp_path):
    shutil.copytree(sound, tmp_path / "s")
    return tmp_path / "s"


def refused(store, words="."):
    """Opening, verifying and showing refuse; the message names the store's file."""
    with pytest.raises(UserError, match=words) as told:
        raysae.open_store(store)
    assert str(store) in str(told.value) or "..." in str(told.value)
    for verb in ("show", "sites"):
        assert run_command(store_command.main, [verb, str(store)]) == REFUSED


SAME = {
    "twice": SHARD,
    "//": f"{FOLDER}//part-00000.parquet",
    "///": f"{FOLDER}///part-00000.parquet",
    "./": f"{FOLDER}/./part-00000.parquet",
    "./ first": f"./{SHARD}",
    "a/..": f"{FOLDER}/a/../part-00000.parquet",
    "..": f"{FOLDER}/../position=all/part-00000.parquet",
    "absolute": f"/{SHARD}",
    "case": f"{FOLDER}/PART-00000.parquet",
    "full width": f"{FOLDER}/ｐart-00000.parquet",
    "another site": "layer=01/position=all/part-00000.parquet",
}


@pytest.mark.parametrize("name", SAME)
def test_a_shard_cannot_be_listed_twice_in_any_spelling(store, name):
    edit(store, lambda m: m["sites"][0]["shards"][1].update(file=SAME[name]))
    refused(store)
    with pytest.raises(UserError):
        verify(store)


def test_names_that_differ_only_in_their_unicode_form_are_one(store):
    for form, shard in (("NFC", 0), ("NFD", 1)):
        name = unicodedata.normalize(form, f"{FOLDER}/é.parquet")
        old = (SHARD, SECOND)[shard]
        os.replace(store / old, store / name)
        edit(store, lambda m, name=name, n=shard: m["sites"][0]["shards"][n].update(file=name))
    refused(store, "twice")


def test_a_link_to_another_shard_counts_as_the_same(store):
    (store / SECOND).unlink()
    (store / SECOND).symlink_to("part-00000.parquet")
    first = json.loads((store / "manifest.json").read_text())["sites"][0]["shards"][0]
    edit(store, lambda m: m["sites"][0]["shards"][1].update({**first, "file": SECOND}))
    refused(store, "would count twice")


def test_a_shard_of_two_sites_is_refused(store):
    edit(store, lambda m: m["sites"][1]["shards"].append(m["sites"][0]["shards"][0]))
    refused(store)


def test_a_store_without_sites_is_refused(store):
    edit(store, lambda m: m.update(sites=[]))
    refused(store, "no sites")
    assert [problem.found for problem in verify(store)] == ["no sites"]


VALUES = {
    "negative rows": lambda m: m["sites"][0]["rows"].update(train=-1),
    "negative rows of a shard": lambda m: m["sites"][0]["shards"][0]["rows"].update(train=-1),
    "true rows": lambda m: m["sites"][0]["rows"].update(test=True),
    "rows as text": lambda m: m["sites"][0]["rows"].update(test="3"),
    "fractional rows": lambda m: m["sites"][0]["rows"].update(test=3.5),
    "10^30 rows": lambda m: m["sites"][0]["shards"][0]["rows"].update(train=10**30),
    "negative bytes": lambda m: m["sites"][0]["shards"][0].update(bytes=-1),
    "true layer": lambda m: m["sites"][0].update(layer=True),
    "NaN": lambda m: m["sites"][0].update(mean_square_norm=float("nan")),
    "infinite mean": lambda m: m["sites"][0]["mean"].__setitem__(0, float("inf")),
    "zero d_in": lambda m: m.update(d_in=0),
    "negative d_in": lambda m: m.update(d_in=-4),
    "huge d_in": lambda m: m.update(d_in=2**40),
    "context of no tokens": lambda m: m.update(context_length=0),
    "long name": lambda m: m["sites"][0]["shards"][0].update(file=f"{FOLDER}/{'x' * 300}"),
    "half a character": lambda m: m["sites"][0]["shards"][0].update(file=f"{FOLDER}/\ud800"),
    "deep": lambda m: m.update(source=json.loads('{"a":' * 300 + "1" + "}" * 300)),
}


@pytest.mark.parametrize("name", VALUES)
def test_a_manifest_of_impossible_values_is_refused(store, name):
    edit(store, VALUES[name])
    refused(store)


@pytest.mark.parametrize(
    "text",
    [
        '{"format_version": 2, "format_version": 2}', "[" * 100_000, "9" * 5000, "\xff", "NaN", "[]",
        '"x"', "null", "",
    ],
)  # fmt: skip
def test_a_manifest_that_is_no_manifest_is_refused(store, text):
    (store / "manifest.json").write_bytes(text.encode("latin-1"))
    refused(store, "manifest.json")


def test_a_manifest_that_gives_a_key_twice_is_refused(store):
    text = (store / "manifest.json").read_text()
    (store / "manifest.json").write_text(text.replace('"d_in": 4', '"d_in": 4, "d_in": 4'))
    refused(store, "'d_in' is given twice")


LONG = ["x" * 300, "a/" * 3000, "a\0b", "\ud800"]


@pytest.mark.parametrize("path", LONG, ids=["long", "deep", "NUL", "surrogate"])
def test_a_path_that_no_system_allows_is_refused_wherever_it_goes(path, sound, tmp_path):
    sae = build_sae(sae_config({"variant": "topk", "d_sae": D_SAE, "k": 2}), D_IN)
    np.save(tmp_path / "x.npy", np.ones((4, 4), np.float32))
    spec = {"dataset": path, "sequences": None}
    calls = [
        lambda: raysae.open_store(path),
        lambda: verify(path),
        lambda: raysae.load_sae(path),
        *(lambda f=f: raysae.load_sae(path, format=f) for f in ("raysae", *FORMATS)),
        lambda: raysae.export_sae(sae, path, "saelens"),
        lambda: import_activations(path, tmp_path / "out", layer=0, position="all"),
        lambda: import_activations(tmp_path / "x.npy", path, layer=0, position="all"),
        lambda: import_activations(
            tmp_path / "x.npy", tmp_path / "out", layer=0, position="all", sequences=Path(path)
        ),
        lambda: next(read_documents(TextSpec(**spec))),
    ]
    for call in calls:
        with pytest.raises(UserError):
            call()


# Files that are no files


def special(kind, path):
    """Put a FIFO, socket, device or folder at ``path``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "folder":
        path.mkdir()
    else:
        where = os.getcwd()
        os.chdir(path.parent)  # a socket's path may have only about 100 characters
        try:
            socket.socket(socket.AF_UNIX).bind(path.name)
        finally:
            os.chdir(where)
    return path


SPECIAL = ["fifo", "socket", "device", "folder"]
SUFFIXES = [
    "x.pt", "x.npy", "x.npz", "x.safetensors", "x.parquet", "x.h5", "x.bin", "x", "folder/x.npy",
    "folder/x.parquet", "saved/state.json", "saved/dataset_dict.json", "store/manifest.json",
]  # fmt: skip


@pytest.mark.parametrize("kind", SPECIAL)
@pytest.mark.parametrize("name", SUFFIXES)
def test_what_is_no_regular_file_is_not_opened_by_an_import(kind, name, tmp_path):
    path = special(kind, tmp_path / name)
    given = path.parent if "/" in name else path
    with pytest.raises(UserError):
        import_activations(
            given, tmp_path / "out", layer=0, position="all", d_in=4, raw_dtype="float32"
        )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", SPECIAL)
def test_nor_by_a_store_an_sae_or_a_text(kind, store, tmp_path):
    for name in (SHARD, "manifest.json"):
        (store / name).unlink()
        special(kind, store / name)
        refused(store)
    for form, names in {
        "raysae": ("cfg.json", "sae.safetensors"), "saelens": ("cfg.json", "sae_weights.safetensors"),
        "sparsify": ("cfg.json", "sae.safetensors"), "dictionary_learning": ("config.json", "ae.pt"),
    }.items():  # fmt: skip
        for name in names:
            folder = saved(form, tmp_path / form / name)
            (folder / name).unlink()
            special(kind, folder / name)
            with pytest.raises(UserError):
                raysae.load_sae(folder, format=form)
    for name in ("x.jsonl", "x.csv.gz", "x.txt", "x.parquet", "x", "folder/x.jsonl"):
        path = special(kind, tmp_path / "texts" / name)
        with pytest.raises(UserError):
            next(read_documents(TextSpec(dataset=str(path.parent if "/" in name else path))))


def test_the_rows_of_a_sound_store_are_still_read(store):
    opened = raysae.open_store(store)
    assert verify(store) == []
    assert len(opened.train(Site(0, "all"))) == opened.entry(Site(0, "all")).rows.train
