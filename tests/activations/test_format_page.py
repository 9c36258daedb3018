"""The normative page: it names what the code has and nothing else, and its examples run."""

import hashlib
import json
import re
from pathlib import Path
from typing import get_args

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

import raysae
from raysae.activations import manifest as records
from raysae.activations import splits
from raysae.activations.schema import (
    D_IN_KEY,
    DTYPE_KEY,
    ITEM_BYTES,
    SEQUENCES_SCHEMA,
    shard_schema,
)
from raysae.activations.verify import verify
from raysae.activations.writer import write_store
from raysae.sites import POOL_NAME, Site
from tests.activations.test_verify import relist, write_text_store

PAGE = (Path(records.__file__).parent / "FORMAT.md").read_text(encoding="utf-8")
PARQUET = {"int64": "INT64", "int32": "INT32", "fixed_size_binary[48]": "FIXED_LEN_BYTE_ARRAY"}


def section(title):
    return re.search(rf"^## {title}$(.*?)(?=^## |\Z)", PAGE, re.M | re.S)[1]


def tables(text):
    """The rows of each table, as lists of cells without backticks."""
    found = re.findall(r"((?:^\|.*\n)+)", text, re.M)
    return [
        [[cell.strip() for cell in line.strip("|\n").split("|")] for line in table.splitlines()[2:]]
        for table in found
    ]


def name(cell):
    return re.fullmatch(r"`(.+)`", cell)[1]


def blocks():
    return re.findall(r"```python\n(.*?)```", PAGE, re.S)


@pytest.fixture(scope="module")
def examples():
    """What all the page's examples define."""
    names = {}
    for block in blocks():
        exec(compile(block, "FORMAT.md", "exec"), names)
    return names


def test_the_page_is_of_this_version():
    assert PAGE.startswith(f"# The activation store, format version {records.FORMAT_VERSION}\n")
    assert f"`format_version` is {records.FORMAT_VERSION}." in section("Versions")
    assert f"`{POOL_NAME}`" in PAGE and len(blocks()) == 3


@pytest.mark.parametrize(
    "record",
    [
        "Manifest",
        "SiteEntry",
        "ShardEntry",
        "SplitRows",
        "SequencesEntry",
        "LiveEntry",
        "LiveShard",
    ],
)
def test_every_field_of_the_manifest_and_no_other(record):
    fields = getattr(records, record).model_fields
    (rows,) = tables(PAGE.split(f"### {record}\n")[1].split("\n#")[0])
    assert [name(row[0]) for row in rows] == list(fields)
    assert [bool(row[2]) for row in rows] == [not field.is_required() for field in fields.values()]
    nullable = [type(None) in get_args(field.annotation) for field in fields.values()]
    assert ["null" in row[1] for row in rows] == nullable


def test_every_column_of_a_shard_and_no_other():
    columns, metadata = tables(section("Shards"))
    schema = shard_schema("float32", 12)
    assert [name(row[0]) for row in columns] == schema.names
    for row, field in zip(columns, schema, strict=True):
        assert name(row[1]).startswith(PARQUET[str(field.type)]) and not field.nullable
    assert [name(row[0]).encode() for row in metadata] == [DTYPE_KEY, D_IN_KEY]
    assert set(re.findall(r"`(\w+)`", metadata[0][1])) - {"dtype"} == set(ITEM_BYTES)


def test_every_column_of_the_sequences_and_no_other():
    (columns,) = tables(section("Sequences files"))
    expected = [[f.name, re.sub(r"element: |item: ", "", str(f.type))] for f in SEQUENCES_SCHEMA]
    assert [[name(row[0]), name(row[1])] for row in columns] == expected


def test_the_worked_hashes_are_right(examples):
    (rows,) = tables(section("Splits"))
    assert len(rows) >= 3
    for sequence, digest, share, split in rows:
        one = np.array([int(sequence)])
        assert int(name(digest), 16) == int(splits.hash_of(one)[0])
        assert float(share) == int(name(digest), 16) / 2**64
        assert splits.SPLITS[splits.split_of(one, 0.1, 0.1)[0]] == split
        assert examples["split_of"](int(sequence), 0.1, 0.1) == split


def test_the_split_function_of_the_page_is_ours(examples):
    random = np.random.default_rng(0)
    sequence = np.concatenate([np.arange(500), random.integers(-(2**63), 2**63 - 1, 500)])
    ours = splits.split_of(sequence, 0.3, 0.2)
    theirs = [examples["split_of"](number, 0.3, 0.2) for number in sequence.tolist()]
    assert [splits.SPLITS[code] for code in ours] == theirs


@pytest.mark.parametrize("dtype", list(ITEM_BYTES))
def test_the_reading_example_agrees_with_ours(tmp_path, examples, dtype):
    rows = {Site(layer, "all"): torch.randn(300, 10) for layer in range(2)}
    shares = {"validation": 0.2, "test": 0.2}
    write_store(
        tmp_path / "s", rows, provenance="imported", source={}, dtype=dtype, split=shares,
        shard_rows=130,
    )  # fmt: skip
    store = raysae.open_store(tmp_path / "s")
    for site in store.sites:
        for split in splits.SPLITS:
            found, sequence = examples["read_site"](tmp_path / "s", site.layer, "all", split)
            ours = getattr(store, split)(site)
            assert torch.equal(torch.from_numpy(found.copy()).float(), ours.float())
            original = rows[site][torch.from_numpy(sequence)].to(ours.dtype)
            assert torch.equal(original, ours)


def test_the_reading_example_refuses_altered_bytes(tmp_path, examples):
    write_text_store(tmp_path / "s")
    file = tmp_path / "s" / "layer=01" / "position=-1" / "part-00000.parquet"
    rows, sequence = examples["read_site"](tmp_path / "s", 1, -1, "train")
    assert rows.shape == (len(sequence), 6)
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(ValueError, match="not the bytes that were written"):
        examples["read_site"](tmp_path / "s", 1, -1, "train")


def test_the_writing_example_makes_a_sound_store(tmp_path, examples):
    rows = np.random.default_rng(0).normal(3, 2, (200, 16)).astype(np.float32)
    examples["write_site"](tmp_path / "s", rows, 5)
    assert verify(tmp_path / "s") == []
    store = raysae.open_store(tmp_path / "s")
    assert store.sites == [Site(5, "all")]
    found = torch.cat([getattr(store, split)(store.sites[0]) for split in splits.SPLITS])
    order = np.argsort(splits.split_of(np.arange(200), 0.1, 0.1), kind="stable")
    assert torch.equal(found, torch.from_numpy(rows[order]))
    again, _ = examples["read_site"](tmp_path / "s", 5, "all", "train")
    assert np.array_equal(again, store.train(store.sites[0]).numpy())


def test_the_digest_is_as_the_page_says(tmp_path):
    manifest = write_text_store(tmp_path / "s")
    written = json.loads((tmp_path / "s" / "manifest.json").read_text())
    text = json.dumps(written, sort_keys=True)
    assert hashlib.sha256(text.encode()).hexdigest() == manifest.digest()


def test_another_encoding_is_a_store_too(tmp_path):
    """As another writer may do it: compressed, dictionaries, pages of version 2, no Arrow schema."""
    manifest = write_text_store(tmp_path / "s")
    before = {
        site: raysae.open_store(tmp_path / "s").train(site) for site in manifest_sites(manifest)
    }
    for shard in (shard for entry in manifest.sites for shard in entry.shards):
        file = pq.ParquetFile(tmp_path / "s" / shard.file)
        groups = [file.read_row_group(number) for number in range(file.num_row_groups)]
        plain = groups[0].schema.remove_metadata()
        options = {"compression": "zstd", "data_page_version": "2.0", "store_schema": False}
        with pq.ParquetWriter(tmp_path / "s" / shard.file, plain, **options) as writer:
            for group in groups:
                writer.write_table(group.cast(plain))
            writer.add_key_value_metadata({"raysae.dtype": "bfloat16", "raysae.d_in": "6"})
        relist(tmp_path / "s", shard.file)
    assert verify(tmp_path / "s") == []
    for site, rows in before.items():
        assert torch.equal(raysae.open_store(tmp_path / "s").train(site), rows)


def manifest_sites(manifest):
    return [entry.site for entry in manifest.sites]
