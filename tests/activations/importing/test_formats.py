"""The contract of every format: the rows that went in come out, bit for bit, in another order."""

import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from raysae.activations import open_store
from raysae.activations.importing.run import import_activations
from raysae.activations.splits import split_of
from raysae.sites import Site
from tests.activations.importing import foreign
from tests.activations.importing.foreign import (
    D_IN,
    FORMATS,
    ROWS,
    SEQUENCE,
    SEQUENCES,
    TOKENS,
    order,
    places,
    rows_of,
    saelens,
    stored,
    tables,
)

SITE = Site(3, "all")
CASES = [(name, dtype) for name, form in FORMATS.items() for dtype in form.dtypes]


def bring(tmp_path, name, kind, **options):
    """Import the rows, ``kind`` their dtype, as the named format; the store."""
    form = FORMATS[name]
    file = form.write(tmp_path, rows_of(kind))
    if name == "raw":
        options = {"raw_dtype": kind, **options}
    import_activations(file, tmp_path / "store", **{**form.options, **options})
    return open_store(tmp_path / "store")


@pytest.mark.parametrize(("name", "dtype"), CASES)
def test_rows_come_back_bit_for_bit_by_their_place(tmp_path, name, dtype):
    store = bring(tmp_path, name, dtype, shard_rows=128)
    assert stored(store, SITE) == places(rows_of(dtype), FORMATS[name].known_by)
    assert (store.manifest.dtype, store.d_in) == (dtype, D_IN)
    assert store.manifest.provenance == "imported"
    store.check(*store.entry(SITE).shards)


@pytest.mark.parametrize("name", FORMATS)
def test_shards_are_no_stretches_of_the_file(tmp_path, name):
    store = bring(tmp_path, name, "float32", shard_rows=100)
    known = sorted(places(rows_of("float32"), FORMATS[name].known_by))
    for shard in store.entry(SITE).shards:
        rows = [
            t for split in ("train", "validation", "test") for t in rows_at(store, shard, split)
        ]
        numbers = [known.index(row) for row in rows]
        assert min(numbers) < ROWS / 4 and max(numbers) > ROWS * 3 / 4
        assert numbers != sorted(numbers)


def rows_at(store, shard, split):
    if not getattr(shard.rows, split):
        return []
    table = store.read(shard, split)
    return list(zip(table["sequence"].to_pylist(), table["token_index"].to_pylist(), strict=True))


@pytest.mark.parametrize("name", ["npy tokens", "parquet folder", "pt dictionary", "saelens"])
def test_the_same_seed_gives_the_same_store_and_another_seed_another(tmp_path, name):
    found = []
    for number, seed in enumerate((5, 5, 6)):
        folder = tmp_path / str(number)
        folder.mkdir()
        store = bring(folder, name, "float16", seed=seed, shard_rows=100)
        found.append([shard.sha256 for shard in store.entry(SITE).shards])
    assert found[0] == found[1] != found[2]


@pytest.mark.parametrize("token", [0, 3, -1])
@pytest.mark.parametrize("name", ["pt tokens", "npy tokens", "parquet token tensors", "saelens"])
def test_a_position_takes_that_token_of_each_sequence(tmp_path, name, token):
    store = bring(tmp_path, name, "float32", layer=3, position=token)
    wanted = places(rows_of("float32"), "token")
    index = token % TOKENS
    assert stored(store, Site(3, token)) == {k: v for k, v in wanted.items() if k[1] == index}


def test_splits_follow_the_sequences_ids(tmp_path):
    store = bring(tmp_path, "parquet lists", "float16", validation=0.2, test=0.3)
    codes = split_of(np.unique(SEQUENCE), 0.2, 0.3)
    for table, code in zip(tables(store, SITE), range(3), strict=True):
        wanted = np.unique(SEQUENCE)[codes == code].tolist()
        assert sorted(set(table["sequence"].to_pylist())) == wanted


def test_layers_from_any_format_end_up_row_by_row_aligned(tmp_path):
    kinds = ["npy tokens", "parquet token tensors", "pt tokens", "saelens"]
    for layer, name in enumerate(kinds):
        folder = tmp_path / str(layer)
        folder.mkdir()
        file = FORMATS[name].write(folder, rows_of("float32", seed=layer))
        import_activations(
            file, tmp_path / "store", layer=layer, position="all", shard_rows=70,
            hookpoint="resid_post",
        )  # fmt: skip
    orders = [order(tmp_path / "store", Site(layer, "all")) for layer in range(len(kinds))]
    assert all(found == orders[0] for found in orders)
    for layer in range(len(kinds)):
        wanted = places(rows_of("float32", seed=layer), "token")
        assert stored(tmp_path / "store", Site(layer, "all")) == wanted


def test_float64_is_stored_as_float32_and_told(tmp_path):
    np.save(tmp_path / "x.npy", rows_of("float64").numpy())
    done = import_activations(tmp_path / "x.npy", tmp_path / "s", layer=3, position="all")
    assert "float64" in done.notes[0]
    assert stored(tmp_path / "s", SITE) == places(rows_of("float64").float(), "row")


def test_another_dtype_may_be_asked_for(tmp_path):
    store = bring(tmp_path, "npy matrix", "float32", dtype="bfloat16")
    assert stored(store, SITE) == places(rows_of("float32").bfloat16(), "row")


def test_ids_may_come_from_a_file_of_their_own(tmp_path):
    np.save(tmp_path / "ids.npy", SEQUENCE.astype(np.int32))
    np.save(tmp_path / "few.npy", SEQUENCE[::TOKENS])
    store = bring(tmp_path, "raw", "float16", sequences=tmp_path / "ids.npy", position=2)
    found = tables(store, Site(3, 2))
    assert sorted(s for table in found for s in table["sequence"].to_pylist()) == sorted(SEQUENCE)
    shutil.rmtree(tmp_path / "store")
    store = bring(tmp_path, "npy tokens", "float16", sequences=str(tmp_path / "few.npy"))
    assert stored(store, SITE) == places(rows_of("float16"), "ids")
    assert store.manifest.source["imports"][0]["options"]["sequences"] == "few.npy"


# the published layout: 12 layers x 6 positions of every problem in one tensor


def published(layers=3, positions=4, problems=25):
    count = layers * positions * problems
    grid = np.indices((problems, layers, positions)).reshape(3, count)
    activations = torch.arange(count * D_IN, dtype=torch.float32).view(count, D_IN)
    metadata = {
        "problem_ids": (grid[0] + 100).tolist(),
        "layers": torch.from_numpy(grid[1]),
        "positions": grid[2].tolist(),
    }
    return {"activations": activations, "metadata": metadata, "config": {"layers": layers}}


def test_one_tensor_of_all_sites_becomes_all_sites(tmp_path):
    content = published()
    torch.save(content, tmp_path / "all.pt")
    done = import_activations(tmp_path / "all.pt", tmp_path / "s", shard_rows=10)
    store = open_store(tmp_path / "s")
    assert store.sites == [Site(layer, p) for layer in range(3) for p in range(4)]
    assert (done.rows, len(done.entries)) == (300, 12)
    grid = content["activations"].view(25, 3, 4, D_IN)
    for site in store.sites:
        wanted = {
            (problem + 100, site.position): grid[problem, site.layer, site.position]
            .numpy()
            .tobytes()
            for problem in range(25)
        }
        assert stored(store, site) == wanted
        assert order(tmp_path / "s", site) == order(tmp_path / "s", Site(0, 0))


@pytest.mark.parametrize(
    ("options", "sites"),
    [
        ({"layer": 2}, [Site(2, p) for p in range(4)]),
        ({"position": 1}, [Site(layer, 1) for layer in range(3)]),
        ({"layer": 2, "position": "1"}, [Site(2, 1)]),
        ({"layer": 0, "position": "all"}, [Site(0, "all")]),
        ({"position": "thoughts"}, [Site(layer, "thoughts") for layer in range(3)]),
    ],
)
def test_layer_and_position_select_where_the_file_says_them(tmp_path, options, sites):
    torch.save(published(), tmp_path / "all.pt")
    import_activations(tmp_path / "all.pt", tmp_path / "s", **options)
    store = open_store(tmp_path / "s")
    assert store.sites == sites
    rows = 100 if isinstance(sites[0].position, str) else 25
    assert all(store.entry(site).rows.total == rows for site in sites)


def test_without_ids_rows_are_counted_within_each_site(tmp_path):
    content = published()
    torch.save(content, tmp_path / "all.pt")
    import_activations(tmp_path / "all.pt", tmp_path / "s", keys={"sequence": "none"})
    for site in open_store(tmp_path / "s").sites:
        assert sorted(order(tmp_path / "s", site)) == list(range(25))


def test_the_file_may_say_its_layer_and_position_once(tmp_path):
    torch.save({"acts": rows_of("float16"), "layer": 7, "pos": -2}, tmp_path / "one.pt")
    import_activations(tmp_path / "one.pt", tmp_path / "s")
    assert open_store(tmp_path / "s").sites == [Site(7, -2)]


def test_parquet_columns_of_layer_and_position_make_sites(tmp_path):
    table = pa.table(
        {
            "vector": foreign.lists(rows_of("float16")),
            "sample": SEQUENCE.astype(np.int32),
            "layer_idx": np.full(ROWS, 4, np.int8),
            "token_position": foreign.TOKEN,
            "text": ["a text"] * ROWS,
        }
    )
    pq.write_table(table, tmp_path / "x.parquet")
    import_activations(tmp_path / "x.parquet", tmp_path / "s")
    store = open_store(tmp_path / "s")
    assert store.sites == [Site(4, token) for token in range(TOKENS)]
    wanted = places(rows_of("float16"), "ids")
    assert stored(store, Site(4, 2)) == {key: row for key, row in wanted.items() if key[1] == 2}


def test_keys_name_what_the_names_do_not_tell(tmp_path):
    content = {
        "a": {"x": rows_of("float32"), "who": SEQUENCE.tolist(), "when": foreign.TOKEN.tolist()},
        "b": {"x": torch.zeros(4, 4)},
    }
    torch.save(content, tmp_path / "x.pt")
    keys = {"activation": "a.x", "sequence": "who", "token_index": "a.when"}
    import_activations(tmp_path / "x.pt", tmp_path / "s", layer=3, position="all", keys=keys)
    assert stored(tmp_path / "s", SITE) == places(rows_of("float32"), "ids")


# SAELens


def test_saelens_hook_tells_layer_and_hookpoint_and_tokens_keep_their_ids(tmp_path):
    import_activations(saelens(tmp_path, rows_of("float16")), tmp_path / "s")
    store = open_store(tmp_path / "s")
    assert (store.sites, store.manifest.hookpoint) == ([SITE], "resid_post")
    for table in tables(store, SITE):
        number, token, token_id = (
            table[n].to_numpy() for n in ("sequence", "token_index", "token_id")
        )
        assert (token_id == (number * 7 + 3) * 10 + token).all()


@pytest.mark.parametrize(
    ("hook", "options", "site", "hookpoint"),
    [
        ("blocks.11.hook_mlp_out", {}, Site(11, "all"), "mlp_out"),
        ("blocks.2.hook_attn_out", {"layer": 9}, Site(9, "all"), "attn_out"),
        ("blocks.4.attn.hook_z", {"position": 0}, Site(4, 0), "unknown"),
        ("hook_embed", {"layer": 0, "hookpoint": "embed"}, Site(0, "all"), "embed"),
    ],
)
def test_saelens_hooks_are_read_as_far_as_they_say(tmp_path, hook, options, site, hookpoint):
    folder = saelens(tmp_path, rows_of("float32"), hook=hook, token_ids=False)
    import_activations(folder, tmp_path / "s", **options)
    manifest = open_store(tmp_path / "s").manifest
    assert ([entry.site for entry in manifest.sites], manifest.hookpoint) == ([site], hookpoint)


def test_saelens_shards_consolidated_into_one_folder_are_read_in_order(tmp_path):
    """The layout that ``CacheActivationsRunner._consolidate_shards`` leaves: renamed Arrow files."""
    rows = rows_of("float32")
    (tmp_path / "cached").mkdir()
    files = []
    for number in range(3):
        (tmp_path / str(number)).mkdir()
        part = rows[number * ROWS // 3 : (number + 1) * ROWS // 3]
        shard = saelens(tmp_path / str(number), part, token_ids=False, shards=2)
        for file in json.loads((shard / "state.json").read_text())["_data_files"]:
            name = f"data-{len(files):05d}-of-00003.arrow"
            shutil.move(shard / file["filename"], tmp_path / "cached" / name)
            files.append({"filename": name})
        shutil.copy(shard / "dataset_info.json", tmp_path / "cached")
    (tmp_path / "cached/state.json").write_text(json.dumps({"_data_files": files}))
    import_activations(tmp_path / "cached", tmp_path / "s", shard_rows=90)
    assert len(files) == 6
    assert stored(tmp_path / "s", SITE) == places(rows, "token")


def test_the_manifest_says_where_the_rows_came_from(tmp_path):
    import hashlib

    store = bring(
        tmp_path, "npy tokens", "float16", model="gpt2", dataset="openwebtext", hookpoint="mlp_out",
        seed=3, validation=0.2,
    )  # fmt: skip
    manifest, content = store.manifest, (tmp_path / "acts.npy").read_bytes()
    record = manifest.source["imports"][0]
    assert (manifest.model, manifest.dataset) == ({"id": "gpt2"}, {"id": "openwebtext"})
    assert (manifest.hookpoint, manifest.split) == ("mlp_out", {"validation": 0.2, "test": 0.1})
    assert (record["file"], record["format"]) == ("acts.npy", "npy")
    assert record["sha256"] == hashlib.sha256(content).hexdigest()
    assert (record["bytes"], record["shape"]) == (len(content), [SEQUENCES, TOKENS, D_IN])
    assert record["options"]["seed"] == 3
    assert str(tmp_path) not in json.dumps(manifest.model_dump())


def test_a_folders_checksum_is_that_of_its_files_in_order(tmp_path):
    import hashlib

    store = bring(tmp_path, "parquet folder", "float16")
    content = b"".join(file.read_bytes() for file in sorted((tmp_path / "parts").iterdir()))
    assert store.manifest.source["imports"][0]["sha256"] == hashlib.sha256(content).hexdigest()
