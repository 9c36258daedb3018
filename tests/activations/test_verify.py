"""Verifying: a sound store passes; every kind of damage is found, and the file and the fault named."""

import hashlib
import json
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from raysae.activations.manifest import FORMAT_VERSION, Manifest, read_manifest
from raysae.activations.schema import SEQUENCES_SCHEMA
from raysae.activations.show import unlisted
from raysae.activations.synthetic import SuperpositionWorld, write_synthetic_store
from raysae.activations.verify import verify
from raysae.activations.writer import (
    ShardFormat,
    SiteRows,
    site_entry,
    write_sequences,
    write_shard,
    write_store,
)
from raysae.errors import UserError
from raysae.sites import Site
from tests.activations.edits import edit

SPLIT = {"validation": 0.2, "test": 0.2}
NUMBERS = {"numbers": r"\d+"}
TEXTS = [f"Ana has {i} cups and {i * 7} pots, has she?" for i in range(60)]
FIRST = "layer=00/position=all/part-00000.parquet"
PART = "sequences/part-00000.parquet"


def write_text_store(folder, texts=TEXTS, d_in=6, per_part=25):
    """A store of one token a word or gap, after a special token, with its sequences files."""
    sites = [Site(0, "all"), Site(0, "numbers"), Site(1, -1), Site(1, 0)]
    written, parts = {site: [] for site in sites}, []
    form = ShardFormat("bfloat16", SPLIT)
    for number, start in enumerate(range(0, len(texts), per_part)):
        numbered = enumerate(texts[start : start + per_part], start)
        table = pa.Table.from_pylist([sequence_row(*row) for row in numbered], SEQUENCES_SCHEMA)
        parts.append(write_sequences(folder, number, table))
        for site in sites:
            rows = rows_at(site, table.to_pylist(), d_in)
            written[site].append(write_shard(folder, site, number, rows, form))
    manifest = Manifest(
        format_version=FORMAT_VERSION, provenance="model", source={"seed": 3},
        model={"id": "tiny", "revision": None, "layers": 2, "weights_sha256": "ab" * 32},
        dataset={"id": "cups", "documents": len(texts), "sequences": len(texts)},
        hookpoint="resid_post", dtype="bfloat16", d_in=d_in, context_length=64, patterns=NUMBERS,
        split=SPLIT, sequences=parts, sites=[site_entry(s, w) for s, w in written.items()],
    )  # fmt: skip
    manifest.write(folder)
    return manifest


def sequence_row(number, text):
    spans = [(-1, -1), *(match.span() for match in re.finditer(r"\w+|\W+", text))]
    return {
        "sequence": number, "documents": [number], "text": text,
        "token_id": [0, *(1 + len(text[a:b]) for a, b in spans[1:])],
        "token_start": [a for a, _ in spans], "token_end": [b for _, b in spans],
        "is_text": [a >= 0 for a, _ in spans],
        "patterns": [int(a >= 0 and text[a:b].isdigit()) for a, b in spans],
    }  # fmt: skip


def rows_at(site, sequences, d_in):
    found = []
    for row in sequences:
        places = range(1, len(row["token_id"]))
        if site.position == "numbers":
            places = [place for place in places if row["patterns"][place]]
        elif isinstance(site.position, int):
            places = [places[site.position]]
        found += [(row["sequence"], place, row["token_id"][place]) for place in places]
    sequence, index, token = (np.array(column) for column in zip(*found, strict=True))
    rows = torch.randn(len(found), d_in, generator=torch.Generator().manual_seed(site.layer))
    return SiteRows(rows + 0.5, sequence, index.astype(np.int32), token.astype(np.int32))


@pytest.fixture
def store(tmp_path):
    write_text_store(tmp_path / "s")
    return tmp_path / "s"


def listed(manifest, name):
    shards = [shard for site in manifest["sites"] for shard in site["shards"]]
    return next(file for file in [*shards, *manifest["sequences"]] if file["file"] == name)


def relist(store, name):
    """Make the manifest's size and checksum those of the file as it is now."""
    content = (store / name).read_bytes()
    fresh = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    edit(store, lambda manifest: listed(manifest, name).update(fresh))


def rewrite(store, name, change, schema=None):
    """Change a file's table, its row groups as they were, its checksum made right."""
    file = pq.ParquetFile(store / name)
    groups = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
    table = change(file.read())
    with pq.ParquetWriter(store / name, schema or table.schema, compression="none") as writer:
        for rows in groups:
            writer.write_table(table.slice(0, rows).cast(schema or table.schema), rows)
            table = table.slice(rows)
    relist(store, name)


def set_value(store, name, column, row, value):
    def change(table):
        values = table[column].to_pylist()
        values[row] = value(values[row])
        at = table.schema.get_field_index(column)
        field = table.schema.field(column)
        return table.set_column(at, field, pa.array(values, field.type))

    rewrite(store, name, change)


def found(store):
    return [f"{p.file}: {p.found} | {p.expected}" for p in verify(store)]


def assert_found(store, file, words):
    told = found(store)
    assert any(line.startswith(file) and words in line for line in told), told
    return told


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_a_sound_store_passes(tmp_path, dtype):
    rows = {Site(layer, "all"): torch.randn(700, 12) * 3 + 20 for layer in range(2)}
    write_store(
        tmp_path / "s", rows, provenance="imported", source={}, dtype=dtype, split=SPLIT,
        shard_rows=300,
    )  # fmt: skip
    assert verify(tmp_path / "s") == []


def test_sound_stores_with_texts_and_of_known_truth_pass(store, tmp_path):
    write_synthetic_store(tmp_path / "w", SuperpositionWorld(d_in=8, atoms=16), 400, shard_rows=90)
    assert verify(store) == [] and verify(str(tmp_path / "w")) == []
    assert unlisted(store, read_manifest(store)) == []
    assert unlisted(tmp_path / "w", read_manifest(tmp_path / "w")) == []


def test_more_rows_than_are_summed_at_a_time_pass(tmp_path):
    write_synthetic_store(tmp_path / "s", SuperpositionWorld(d_in=2, atoms=4), 40_000)
    assert verify(tmp_path / "s") == []


def test_progress_ends_with_all_bytes(store):
    calls = []
    verify(store, lambda done, total: calls.append((done, total)))
    size = sum(path.stat().st_size for path in store.rglob("*.parquet"))
    assert calls[-1] == (size, size) and len(calls) == 15


def test_no_manifest_is_refused(tmp_path):
    with pytest.raises(UserError, match="no manifest.json"):
        verify(tmp_path)


def test_a_flipped_byte(store):
    content = bytearray((store / FIRST).read_bytes())
    content[300] ^= 64
    (store / FIRST).write_bytes(content)
    told = assert_found(store, FIRST, "sha256")
    assert any("mean_square_norm" in line for line in told), "the rows are looked at all the same"


def test_a_truncated_file(store):
    (store / FIRST).write_bytes((store / FIRST).read_bytes()[:-50])
    assert_found(store, FIRST, "bytes")
    assert_found(store, FIRST, "unreadable")


def test_missing_files(store):
    (store / FIRST).unlink()
    (store / PART).unlink()
    told = found(store)
    assert len(told) == 2, told
    assert told[0].startswith(f"{PART}: missing") and told[1].startswith(f"{FIRST}: missing")


def test_a_file_that_is_no_parquet(store):
    (store / FIRST).write_bytes(b"not at all")
    relist(store, FIRST)
    assert_found(store, FIRST, "unreadable")


@pytest.mark.parametrize("key", ["raysae.dtype", "raysae.d_in"])
def test_wrong_metadata(store, key):
    schema = pq.read_schema(store / FIRST)
    wrong = schema.with_metadata({**schema.metadata, key.encode(): b"77"})
    rewrite(store, FIRST, lambda table: table, wrong)
    assert any(line.startswith(f"{FIRST}: {key} 77 | {key}") for line in found(store))
    rewrite(store, FIRST, lambda table: table, schema.remove_metadata())
    assert_found(store, FIRST, f"{key} missing")


def test_other_columns(store):
    rewrite(store, FIRST, lambda table: table.drop_columns("token_id"))
    assert_found(store, FIRST, "columns activation fixed_size_binary[12], sequence int64")
    rewrite(store, PART, lambda table: table.drop_columns("is_text"))
    assert_found(store, PART, "columns sequence int64")


def test_values_that_are_not_finite(store):
    set_value(store, FIRST, "activation", 2, lambda old: b"\xc0\x7f" + old[2:])
    set_value(store, FIRST, "activation", 5, lambda old: b"\x80\x7f" + old[2:])
    told = assert_found(store, FIRST, "2 rows with NaN or infinite values (first: row 2, sequence")
    assert len(told) == 1, told


@pytest.mark.parametrize("name", ["mean_square_norm", "total_variance"])
def test_altered_statistics(store, name):
    edit(store, lambda m: m["sites"][1].update({name: m["sites"][1][name] * (1 + 3e-9)}))
    assert len(assert_found(store, "layer=00/position=numbers: ", name)) == 1


def test_an_altered_mean(store):
    def change(manifest):
        manifest["sites"][0]["mean"][4] += 1e-8

    edit(store, change)
    assert len(assert_found(store, "layer=00/position=all: ", "mean[4]")) == 1
    edit(store, lambda manifest: manifest["sites"][0]["mean"].pop())
    assert_found(store, "layer=00/position=all: ", "a mean of 5 values | d_in 6")


def test_statistics_summed_in_another_order_are_right(store):
    """Two passes over the rows, as another program would compute them."""
    entries = json.loads((store / "manifest.json").read_text())["sites"]
    for number, entry in enumerate(entries):
        tables = [pq.ParquetFile(store / shard["file"]).read() for shard in entry["shards"]]
        bits = np.frombuffer(b"".join(b"".join(t["activation"].to_pylist()) for t in tables), "<u2")
        rows = (bits.astype(np.uint32) << 16).view(np.float32).reshape(-1, 6)[::-1].astype(float)
        figures = {
            "mean": rows.mean(axis=0).tolist(),
            "mean_square_norm": float((rows**2).sum(axis=1).mean()),
            "total_variance": float(((rows - rows.mean(axis=0)) ** 2).sum(axis=1).mean()),
        }
        edit(store, lambda m, n=number, f=figures: m["sites"][n].update(f))
    assert found(store) == []


def test_altered_counts(store):
    edit(store, lambda m: m["sites"][0]["rows"].update(train=7))
    assert_found(store, "layer=00/position=all: ", "the sum over its shards")
    edit(store, lambda m: listed(m, FIRST)["rows"].update(train=1))
    assert_found(store, FIRST, "rows |")


def test_a_row_counted_in_another_split(store):
    def change(manifest):
        rows = listed(manifest, FIRST)["rows"]
        rows.update(train=rows["train"] + 1, test=rows["test"] - 1)

    edit(store, change)
    assert_found(store, FIRST, "by their sequences |")
    assert_found(store, FIRST, "row group 1 with train and validation rows")
    assert_found(store, FIRST, "2 rows in the wrong split (first: row")


def test_a_row_in_the_wrong_split(store):
    table = pq.ParquetFile(store / FIRST).read()
    last = table["sequence"][-1].as_py()
    other = next(i for i, s in enumerate(table["sequence"].to_pylist()) if s != last)
    set_value(store, FIRST, "sequence", other, lambda old: last)
    assert_found(
        store, FIRST, f"1 rows in the wrong split (first: row {other}, sequence {last}, in train)"
    )


def test_a_sequence_that_the_store_does_not_know(store):
    set_value(store, FIRST, "sequence", 0, lambda old: 10**6)
    assert_found(store, FIRST, "1 rows of unknown sequences (first: row 0, sequence 1000000)")


def test_another_token_than_the_sequence_has(store):
    set_value(store, FIRST, "token_id", 4, lambda old: old + 1)
    assert len(assert_found(store, FIRST, "1 rows with another token_id (first: row 4")) == 1


@pytest.mark.parametrize(
    ("index", "words"),
    [
        (-1, "rows with a token_index out of range"),
        (64, "rows with a token_index out of range"),
        (60, "rows beyond their sequence's end"),
        (0, "rows at another position"),
    ],
)
def test_a_token_index_that_cannot_be(store, index, words):
    set_value(store, FIRST, "token_index", 1, lambda old: index)
    assert_found(store, FIRST, f"1 {words} (first: row 1")


@pytest.mark.parametrize(
    "folder", ["layer=00/position=numbers", "layer=01/position=-1", "layer=01/position=00"]
)
def test_rows_from_another_position(store, folder):
    file = f"{folder}/part-00000.parquet"
    rewrite(
        store,
        file,
        lambda table: pq.ParquetFile(store / FIRST).read(),
        pq.read_schema(store / file),
    )
    assert_found(store, file, "rows at another position")


def test_a_position_without_a_pattern(store):
    edit(store, lambda manifest: manifest["patterns"].clear())
    assert_found(store, "layer=00/position=numbers: ", "position numbers | one of all")
    assert_found(store, PART, "tokens with unknown patterns")


def test_an_altered_sequences_file(store):
    content = bytearray((store / PART).read_bytes())
    content[-900] ^= 1
    (store / PART).write_bytes(content)
    assert_found(store, PART, "sha256")


@pytest.mark.parametrize(
    ("column", "value", "words"),
    [
        ("sequence", lambda old: 40, "ids of several sequences (first: 40)"),
        ("token_id", lambda old: [*old[:-1], -7], "tokens with a negative id (first: sequence 3"),
        ("token_id", lambda old: [*old, 7], "sequences with uneven lists (first: sequence 3)"),
        ("is_text", lambda old: old[1:], "sequences with uneven lists (first: sequence 3)"),
        ("token_end", lambda old: [*old[:-1], 900], "tokens outside the text (first: sequence 3"),
        ("token_start", lambda old: [*old[:-1], None], "tokens outside the text"),
        ("patterns", lambda old: [2, *old[1:]], "tokens with unknown patterns"),
    ],
)
def test_sequences_that_cannot_be(store, column, value, words):
    set_value(store, PART, column, 3, value)
    assert_found(store, "sequences/", words)


def test_counts_of_sequences(store):
    edit(store, lambda m: m["sequences"][0].update(sequences=24))
    assert_found(store, PART, "25 sequences")
    assert_found(store, "manifest.json", "60 sequences in dataset | 59")
    edit(store, lambda m: m.update(context_length=5))
    assert_found(store, PART, "sequences too long (first: sequence 0) | at most 5 tokens")


def test_a_manifest_that_says_nothing_usable(store):
    edit(store, lambda m: m["split"].update(test=0.9))
    assert len(assert_found(store, "manifest.json", "split {'validation': 0.2, 'test': 0.9}")) == 1
    edit(store, lambda m: m.update(d_in=0, split=SPLIT, sites=[]))
    assert found(store) == ["manifest.json: d_in 0 | at least 1"]
    edit(store, lambda m: m.update(d_in=6))
    assert found(store) == ["manifest.json: no sites | at least one"]


def test_every_problem_is_listed(store):
    (store / FIRST).unlink()
    set_value(store, PART, "token_end", 3, lambda old: [*old[:-1], 900])
    other = "layer=01/position=-1/part-00001.parquet"
    set_value(store, other, "token_id", 0, lambda old: 99)
    edit(store, lambda m: m["sites"][3].update(total_variance=1.0))
    files = [problem.file for problem in verify(store)]
    assert files == [PART, FIRST, other, "layer=01/position=00"]


def test_files_that_are_not_listed_are_noted(store):
    (store / "notes").mkdir()
    for number in range(12):
        (store / "notes" / f"{number:02d}.txt").write_text("mine")
    assert verify(store) == []
    notes = unlisted(store, read_manifest(store))
    assert notes[0] == "notes/00.txt: not listed in the manifest"
    assert notes[-1] == "2 more files are not listed either"
