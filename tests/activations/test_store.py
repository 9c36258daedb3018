"""The store: what is written comes back, splits hold, damage is found before anything is trained."""

import json
import shutil
from typing import ClassVar

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

import raysae
from raysae.activations import Site
from raysae.activations.manifest import Manifest, SiteEntry, read_manifest
from raysae.activations.splits import split_of
from raysae.activations.store import files_of
from raysae.activations.synthetic import SuperpositionWorld, write_synthetic_store
from raysae.activations.writer import write_store
from raysae.errors import UserError

SPLIT = {"validation": 0.1, "test": 0.1}


@pytest.fixture(params=["float16", "bfloat16", "float32"])
def dtype(request):
    return request.param


@pytest.fixture
def world_store(tmp_path):
    write_synthetic_store(
        tmp_path / "s", SuperpositionWorld(d_in=8, atoms=16), 500, sites=2, shard_rows=167
    )
    return tmp_path / "s"


def test_rows_come_back_bit_for_bit(tmp_path, dtype):
    rows = torch.randn(300, 12).to(getattr(torch, dtype))
    write_store(
        tmp_path / "s", {Site(0, "all"): rows}, provenance="imported", source={}, dtype=dtype,
        split=SPLIT, shard_rows=75,
    )  # fmt: skip
    store = raysae.open_store(tmp_path / "s")
    site = store.sites[0]
    parts = [store.train(site), store.validation(site), store.test(site)]
    assert all(part.dtype == rows.dtype for part in parts)
    order = np.argsort(split_of(np.arange(300), 0.1, 0.1), kind="stable")
    by_split = torch.cat([rows[torch.from_numpy(order)]])
    found = torch.cat(parts).view(torch.uint8 if dtype == "bfloat16" else rows.dtype)
    wanted = by_split.view(found.dtype)
    assert sorted(map(tuple, found.tolist())) == sorted(map(tuple, wanted.tolist()))


def test_statistics_are_those_of_the_rows(world_store):
    rows = SuperpositionWorld(d_in=8, atoms=16).rows(500).double()
    entry = raysae.open_store(world_store).manifest.sites[0]
    assert entry.mean == pytest.approx(rows.mean(dim=0).tolist())
    assert entry.mean_square_norm == pytest.approx(float(rows.square().sum(1).mean()))
    centred = (rows - rows.mean(dim=0)).square().sum(1).mean()
    assert entry.total_variance == pytest.approx(float(centred))


def test_a_sequence_is_in_one_split_whatever_the_shards(tmp_path):
    found = []
    for shards in (1, 5):
        folder = tmp_path / str(shards)
        write_synthetic_store(
            folder, SuperpositionWorld(d_in=4, atoms=4), 400, shard_rows=400 // shards
        )
        store = raysae.open_store(folder)
        found.append(
            {
                split: sorted(
                    number
                    for shard in store.manifest.sites[0].shards
                    for number in store.read(shard, split, ["sequence"])["sequence"].to_pylist()
                )
                for split in ("train", "validation", "test")
            }
        )
    assert found[0] == found[1]
    assert sorted(number for part in found[0].values() for number in part) == list(range(400))
    assert 20 < len(found[0]["validation"]) < 60


def test_split_shares_are_what_was_asked():
    codes = split_of(np.arange(100_000), validation=0.1, test=0.05)
    assert np.mean(codes == 1) == pytest.approx(0.1, abs=0.005)
    assert np.mean(codes == 2) == pytest.approx(0.05, abs=0.005)


def test_shards_are_plain_parquet_with_one_binary_value_a_row(world_store):
    file = next(world_store.glob("layer=00/position=all/part-*.parquet"))
    schema = pq.read_schema(file)
    assert str(schema.field("activation").type) == "fixed_size_binary[32]"
    assert not schema.field("activation").nullable
    assert schema.names == ["activation", "sequence", "token_index", "token_id"]


def test_the_truth_lies_beside_a_synthetic_store(world_store):
    from safetensors.torch import load_file

    atoms = load_file(world_store / "truth.safetensors")["atoms"]
    assert torch.equal(atoms, SuperpositionWorld(d_in=8, atoms=16).truth())
    assert raysae.open_store(world_store).manifest.provenance == "synthetic"


def test_a_missing_site_is_named_with_what_there_is(world_store):
    store = raysae.open_store(world_store)
    with pytest.raises(UserError, match="no site layer 7, position all; its layers are 0, 1"):
        store.train(Site(7, "all"))


def first_shard(store):
    return next(store.rglob("part-00000.parquet"))


def lose_manifest(store):
    (store / "manifest.json").unlink()


def truncate(store):
    content = first_shard(store).read_bytes()
    first_shard(store).write_bytes(content[:-100])


def remove_shard(store):
    first_shard(store).unlink()


def flip_byte(store):
    content = bytearray(first_shard(store).read_bytes())
    content[200] ^= 1
    first_shard(store).write_bytes(content)


def edit(store, change):
    path = store / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


def newer_format(store):
    edit(store, lambda manifest: manifest.update(format_version=9))


def list_twice(store):
    edit(store, lambda manifest: manifest["sites"].append(manifest["sites"][0]))


def escape(store):
    def change(manifest):
        manifest["sites"][0]["shards"][0]["file"] = "../outside.parquet"

    edit(store, change)


def break_json(store):
    (store / "manifest.json").write_text("{")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lose_manifest, "no manifest.json"),
        (truncate, "truncated"),
        (remove_shard, "missing"),
        (flip_byte, "altered"),
        (newer_format, "format_version 9; this raysae reads 2 and 3; upgrade raysae"),
        (list_twice, "listed twice"),
        (escape, "outside"),
        (break_json, "JSON"),
    ],
)
def test_damage_is_found_and_named(world_store, damage, words):
    damage(world_store)
    with pytest.raises(UserError, match=words):
        store = raysae.open_store(world_store)
        store.check(*files_of(store.manifest))


def test_altered_bytes_are_found_on_reading_too(world_store):
    flip_byte(world_store)
    store = raysae.open_store(world_store)
    broken = Site.of_folder(first_shard(world_store).parent.relative_to(world_store).as_posix())
    with pytest.raises(UserError, match="altered"):
        store.train(broken)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (1e6, "set dtype to bfloat16"),
        (float("nan"), "NaN or infinite values .first: sequence 3, token 0"),
    ],
)
def test_values_that_the_dtype_cannot_hold_are_refused(tmp_path, value, words):
    rows = torch.zeros(20, 4)
    rows[3, 2] = value
    with pytest.raises(UserError, match=words):
        write_store(
            tmp_path / "s", {Site(0, 0): rows}, provenance="imported", source={}, dtype="float16",
            split=SPLIT,
        )  # fmt: skip
    assert not (tmp_path / "s" / "manifest.json").exists()


def test_a_store_is_not_overwritten(world_store):
    before = (world_store / "manifest.json").read_bytes()
    with pytest.raises(UserError, match="holds a store already"):
        write_synthetic_store(world_store, SuperpositionWorld(d_in=4, atoms=4), 10)
    assert (world_store / "manifest.json").read_bytes() == before


@pytest.mark.parametrize(
    ("site", "folder"),
    [
        (Site(8, 3), "layer=08/position=03"),
        (Site(0, -1), "layer=00/position=-1"),
        (Site(11, "all"), "layer=11/position=all"),
        (Site(8, 3, "mlp_out"), "hookpoint=mlp_out/layer=08/position=03"),
    ],
)
def test_sites_name_folders_and_back(site, folder):
    assert site.folder == folder
    assert Site.of_folder(folder) == site
    with pytest.raises(ValueError):
        Site.of_folder(f"../{folder}")


def test_moving_a_store_changes_nothing(world_store, tmp_path):
    digest = raysae.open_store(world_store).digest
    shutil.move(world_store, tmp_path / "elsewhere")
    assert raysae.open_store(tmp_path / "elsewhere").digest == digest


def test_a_field_that_is_added_to_the_format_leaves_older_digests_alone(tmp_path):
    world = SuperpositionWorld(d_in=8, atoms=16)
    write_synthetic_store(tmp_path / "store", world, 100)
    older = read_manifest(tmp_path / "store")

    class Entry(SiteEntry):
        added: ClassVar = SiteEntry.added | {"sinks"}
        sinks: int = 0

    class Later(Manifest):
        added: ClassVar = Manifest.added | {"notes"}
        notes: str = ""
        sites: list[Entry]

    content = json.loads((tmp_path / "store" / "manifest.json").read_text())
    assert Later.model_validate(content).digest() == older.digest()
    assert Later.model_validate({**content, "notes": "new"}).digest() != older.digest()
    without_defaults = {key: value for key, value in content.items() if key != "patterns"}
    assert Manifest.model_validate(without_defaults).digest() == older.digest()
