"""What cannot be imported is refused before a shard is written, with the reason and the mend."""

import json
import pickle

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file

from raysae.activations import open_store
from raysae.activations.importing import run as importing
from raysae.activations.importing.run import import_activations
from raysae.errors import UserError
from raysae.sites import Site
from tests.activations.importing.foreign import FORMATS, lists, rows_of, saelens

PLACE = {"layer": 1, "position": "all"}


class Evil:
    """A pickle that would run a command."""

    def __reduce__(self):
        return open, ("ran.txt", "w")


def refused(tmp_path, file, words, **options):
    with pytest.raises(UserError, match=words):
        import_activations(file, tmp_path / "store", **{**PLACE, **options})
    assert not (tmp_path / "store").exists()


def saved(tmp_path, name, content):
    file = tmp_path / name
    match file.suffix:
        case ".npy":
            np.save(file, content, allow_pickle=True)
        case ".pt":
            torch.save(content, file)
        case ".safetensors":
            save_file(content, file)
        case ".parquet":
            pq.write_table(pa.table(content), file, row_group_size=4)
        case _:
            file.write_bytes(content)
    return file


ZEROS = np.zeros((6, 4), np.float32)
T_ZEROS = torch.zeros(6, 4)
RAW = {"d_in": 4, "raw_dtype": "float16"}
CASES = {
    "unknown suffix": ("x.foo", b"1,2", {}, r"unknown suffix '.foo'; known are .pt, .pth"),
    "empty .npy": ("x.npy", None, {}, "empty, truncated"),
    "empty .pt": ("x.pt", None, {}, "truncated, damaged"),
    "empty .safetensors": ("x.safetensors", None, {}, "truncated, damaged"),
    "empty .parquet": ("x.parquet", None, {}, "truncated or damaged"),
    "empty raw": ("x.bin", b"", RAW, "0 bytes, no whole number of rows"),
    "zero rows .npy": ("x.npy", ZEROS[:0], {}, r"no rows \(shape \[0, 4\]\)"),
    "zero rows .pt": ("x.pt", {"a": T_ZEROS[:0]}, {}, r"no rows \(shape \[0, 4\]\)"),
    "zero rows .parquet": ("x.parquet", {"x": pa.array([], pa.list_(pa.float32()))}, {}, "no rows"),
    "no d_in": ("x.npy", ZEROS[:, :0], {}, r"no rows \(shape \[6, 0\]\)"),
    "one dimension": ("x.npy", ZEROS[0], {}, "1 dimensions .* expected activations"),
    "four dimensions": ("x.pt", T_ZEROS.view(2, 3, 2, 2), {}, "4 dimensions"),
    "whole numbers .npy": ("x.npy", ZEROS.astype(int), {}, "int64 values; expected float16"),
    "whole numbers .pt": ("x.pt", T_ZEROS.int(), {}, "int32 values"),
    "complex": ("x.pt", T_ZEROS.cfloat(), {}, "complex64 values"),
    "no activations": ("x.pt", {"a": torch.zeros(6), "b": "x"}, {}, r"(?s)nothing in it.*a: \[6\]"),
    "several tensors": (
        "x.pt", {"a": T_ZEROS, "m": {"b": T_ZEROS}}, {},
        r"(?s)several could be the activations.*--key activation=NAME.*m.b: \[6, 4\] float32",
    ),
    "several tensors .safetensors": (
        "x.safetensors", {"a": T_ZEROS, "b": T_ZEROS.clone()}, {}, "several could be the activations"
    ),
    "several columns": ("x.parquet", {"a": list(ZEROS), "b": list(ZEROS)}, {}, "several could be"),
    "no such key": ("x.pt", {"a": T_ZEROS}, {"keys": {"activation": "c"}}, "'c' is not in it; it has a"),
    "unknown role": ("x.pt", T_ZEROS, {"keys": {"activatoin": "c"}}, "known are activation, sequence"),
    "ambiguous column": (
        "x.pt", {"a": T_ZEROS, "problem_id": [0] * 6, "example_id": [0] * 6}, {},
        "several could be the sequence: problem_id, example_id",
    ),
    "no layer": ("x.npy", ZEROS, {"layer": None}, "does not say its layer; give --layer"),
    "no position": ("x.npy", ZEROS, {"position": None}, "does not say its position; give --position"),
    "a layer that is not there": (
        "x.pt", {"a": T_ZEROS, "layers": [0, 0, 0, 2, 2, 2]}, {}, "no rows of layer 1.*layers 0, 2"
    ),
    "a token that is not there": (
        "x.npy", np.zeros((2, 3, 4), np.float32), {"position": 3}, "3 tokens; expected -3 to 2, or all"
    ),
    "a position that is none": ("x.npy", ZEROS, {"position": "Last!"}, "--position Last!: expected"),
    "a negative layer": ("x.npy", ZEROS, {"layer": -1}, "--layer -1: expected a whole number from 0"),
    "too few ids": ("x.pt", {"a": T_ZEROS, "problem_ids": [1, 2]}, {}, "2 values; expected 6"),
    "ids that are fractions": (
        "x.pt", {"a": T_ZEROS, "problem_ids": [0.5] * 6}, {}, "not hold whole numbers or text"
    ),
    "a layer out of range": (
        "x.pt", {"a": T_ZEROS, "layers": [1, 1, -4, 1, 1, 1]}, {}, "out of range: -4 at row 2"
    ),
    "a position out of range": (
        "x.parquet", {"a": list(ZEROS), "position": [2**40] * 6}, {}, "position.* out of range"
    ),
    "a layer of fractions": (
        "x.pt", {"a": T_ZEROS, "layer": torch.ones(6)}, {}, "not hold whole numbers"
    ),
    "a layer of text": ("x.parquet", {"a": list(ZEROS), "layer": ["one"] * 6}, {}, "layer.* is string"),
    "a null id": (
        "x.parquet", {"a": list(ZEROS), "sequence": [0, 1, None, 3, 4, 5]}, {}, "row 2 is null"
    ),
    "bytes of no known kind": (
        "x.parquet", {"a": pa.array([b"12345678"] * 6, pa.binary(8))}, {}, "raysae.dtype is ''"
    ),
    "ragged rows": (
        "x.parquet", {"a": [[1.0, 2.0]] * 5 + [[3.0]]}, {}, "row 5 has 1 values, the first row 2"
    ),
    "a null row": ("x.parquet", {"a": [[1.0, 2.0]] * 5 + [None]}, {}, "a: row 5 is null"),
    "a null value": ("x.parquet", {"a": [[1.0, 2.0]] * 5 + [[1.0, None]]}, {}, "row 5 holds a null"),
    "raw without a word": ("x.raw", b"1234", {}, "give --d-in N and --raw-dtype"),
    "raw of a part of a row": ("x.dat", b"123456789", RAW, "9 bytes, no whole number of rows of 8"),
    "an object array": ("x.npy", np.array([{}, 1]), {}, "Python objects, and pickled code is never run"),
    "an unknown dtype": ("x.npy", ZEROS, {"dtype": "float8"}, "--dtype float8: expected one of"),
    "shares of more than all": ("x.npy", ZEROS, {"validation": 0.7, "test": 0.3}, "--validation 0.7"),
    "too large for float16": (
        "x.npy", ZEROS + 7e4, {"dtype": "float16"}, "reaches 7e.04 .row 0.*--dtype bfloat16 or --dtype"
    ),
    "float64 beyond float32": ("x.npy", ZEROS.astype(float) + 1e300, {}, "above float32's largest"),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_a_file_that_cannot_be_imported_is_refused(tmp_path, name):
    file, content, options, words = CASES[name]
    path = tmp_path / file
    if content is None:
        path.write_bytes(b"")
    else:
        path = saved(tmp_path, file, content)
    refused(tmp_path, path, words, **options)


def test_a_missing_file_is_refused(tmp_path):
    refused(tmp_path, tmp_path / "gone.npy", "gone.npy: no such file or folder")


@pytest.mark.parametrize("name", ["pt matrix", "pt legacy", "npy matrix", "safetensors tokens"])
def test_a_truncated_file_is_refused(tmp_path, name):
    file = FORMATS[name].write(tmp_path, rows_of("float32"))
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    refused(tmp_path, file, "truncated")


def test_a_truncated_or_corrupt_parquet_file_is_refused_by_name(tmp_path):
    folder = FORMATS["parquet folder"].write(tmp_path, rows_of("float32"))
    second = folder / "1.parquet"
    content = bytearray(second.read_bytes())
    second.write_bytes(content[:-50])
    refused(tmp_path, folder, "1.parquet: not a readable Parquet file")
    content[4:400] = bytes(396)
    second.write_bytes(content)
    refused(tmp_path, folder, "1.parquet: not a readable Parquet file")


def test_pickled_objects_are_never_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"a": torch.zeros(4, 4), "b": Evil()}, tmp_path / "zip.pt")
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(Evil(), protocol=2))
    for name in ("zip.pt", "plain.pt"):
        refused(tmp_path, tmp_path / name, "pickled code is never run")
    assert not (tmp_path / "ran.txt").exists()


def test_a_mixture_of_parquet_files_is_refused(tmp_path):
    folder = FORMATS["parquet folder"].write(tmp_path, rows_of("float32"))
    pq.write_table(pa.table({"acts": lists(rows_of("float16"))}), folder / "9.parquet")
    refused(tmp_path, folder, "9.parquet: its columns are not those of 0.parquet")


def test_folders_that_hold_nothing_known_are_refused(tmp_path):
    (tmp_path / "x" / "deeper").mkdir(parents=True)
    refused(tmp_path, tmp_path / "x", "holds neither Parquet files")
    (tmp_path / "x" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    refused(tmp_path, tmp_path / "x", r"several data sets \(train, test\)")


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ("{", "not valid JSON"),
        ('{"_fingerprint": null}', "does not list _data_files"),
        ('{"_data_files": [{"filename": "../outside.arrow"}]}', "not in that folder"),
        ('{"_data_files": [{"filename": "data-00009.arrow"}]}', "incomplete"),
        ('{"_data_files": []}', "no rows"),
    ],
)
def test_damaged_saelens_folders_are_refused(tmp_path, state, words):
    (tmp_path / "outside.arrow").write_bytes(b"x")
    folder = saelens(tmp_path, rows_of("float32"))
    (folder / "state.json").write_text(state)
    refused(tmp_path, folder, words)


def test_a_truncated_arrow_file_is_refused_by_name(tmp_path):
    folder = saelens(tmp_path, rows_of("float32"))
    file = folder / json.loads((folder / "state.json").read_text())["_data_files"][0]["filename"]
    file.write_bytes(file.read_bytes()[:-3000])
    refused(tmp_path, folder, f"{file.name}: not a readable Arrow file")


# values that are not finite


def with_holes(rows):
    rows[17, 3], rows[40, 0], rows[41, 1] = float("nan"), float("inf"), float("-inf")
    return rows


@pytest.mark.parametrize("name", ["npy matrix", "parquet lists", "pt tokens", "saelens"])
def test_rows_that_are_not_finite_are_refused_with_count_and_place(tmp_path, name):
    file = FORMATS[name].write(tmp_path, with_holes(rows_of("float32")))
    place = "sequence 3, token 2" if FORMATS[name].known_by == "token" else "row 17"
    refused(
        tmp_path, file, f"3 of 300 rows hold NaN or infinite values .first: {place}.*--non-finite"
    )


def test_rows_that_are_not_finite_are_dropped_when_asked_and_counted(tmp_path):
    file = FORMATS["npy matrix"].write(tmp_path, with_holes(rows_of("float32")))
    done = import_activations(file, tmp_path / "s", **PLACE, non_finite="drop", shard_rows=50)
    entry = open_store(tmp_path / "s").entry(Site(1, "all"))
    assert (done.dropped, entry.dropped, entry.rows.total, done.rows) == (3, 3, 297, 297)


def test_a_site_that_would_be_left_empty_is_refused(tmp_path):
    content = {"acts": torch.full((8, 4), float("nan")), "layer": [0] * 4 + [1] * 4}
    content["acts"][:4] = 1.0
    torch.save(content, tmp_path / "x.pt")
    refused(
        tmp_path, tmp_path / "x.pt", "layer 1, position all: all 4 rows hold NaN", layer=None,
        non_finite="drop",
    )  # fmt: skip


def test_a_disk_that_will_not_hold_the_store_is_told_before(tmp_path, monkeypatch):
    file = FORMATS["npy matrix"].write(tmp_path, rows_of("float32"))
    monkeypatch.setattr(importing.ImportPlan, "bytes", 2**60)
    refused(tmp_path, file, "the store takes .* GB, the disk has")


def test_ids_of_another_kind_or_length_are_refused(tmp_path):
    file = FORMATS["npy tokens"].write(tmp_path, rows_of("float32"))
    np.save(tmp_path / "ids.npy", np.arange(59))
    refused(tmp_path, file, "59 values; expected 300 or 60", sequences=tmp_path / "ids.npy")
    np.save(tmp_path / "ids.npy", np.arange(60.0))
    refused(tmp_path, file, "expected whole numbers or text as ids", sequences=tmp_path / "ids.npy")
    refused(tmp_path, file, "no such file of sequence ids", sequences=tmp_path / "gone.npy")
