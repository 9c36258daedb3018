"""Files that claim more than they hold: arrays, headers, Parquet and packed texts."""

import gzip
import io
import json
import re
import struct
import zipfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import raysae
from raysae.activations.importing.run import import_activations
from raysae.errors import UserError
from raysae.transformer import text_files
from raysae.transformer.text_files import file_rows
from tests.hostile.saes import saved


def npy(shape, dtype="<f4", data=b""):
    """A .npy file whose header claims ``shape``."""
    header = f"{{'descr': {dtype!r}, 'fortran_order': False, 'shape': {shape!r}, }}".encode()
    header += b" " * (63 - (10 + len(header)) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + data


CLAIMS = [(1 << 40, 4), (1 << 62, 1 << 62), (-1, 4), (2**100, 4), (3, 1 << 33)]


@pytest.mark.parametrize("shape", CLAIMS, ids=str)
@pytest.mark.parametrize("dtype", ["<f4", "<i8", "|O", "|b1", "|V2147483647"])
def test_arrays_that_claim_more_than_they_hold_are_refused(shape, dtype, tmp_path):
    content = npy(shape, dtype, b"\0" * 64)
    (tmp_path / "x.npy").write_bytes(content)
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        with zipfile.ZipFile(tmp_path / f"{method}.npz", "w", method) as archive:
            archive.writestr("x.npy", content)
            archive.writestr("activations.npy", npy((2, 4), data=b"\0" * 32))
    for name in ("x.npy", f"{zipfile.ZIP_STORED}.npz", f"{zipfile.ZIP_DEFLATED}.npz"):
        with pytest.raises(UserError, match=re.escape(name)):
            import_activations(tmp_path / name, tmp_path / "out", layer=0, position="all")


def safetensors_of(header, length=None):
    return struct.pack("<Q", len(header) if length is None else length) + header + b"\0" * 64


def entry(start, end, shape=(2, 2), dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


SAFETENSORS = {
    "claims 100 MB": safetensors_of(b'{"a": 1}', 100_000_000),
    "claims everything": safetensors_of(b'{"a": 1}', 2**64 - 1),
    "overlapping": safetensors_of(json.dumps({"a": entry(0, 16), "b": entry(8, 24)}).encode()),
    "beyond the end": safetensors_of(
        json.dumps({"a": entry(0, 1 << 40, (1 << 19, 1 << 19))}).encode()
    ),
    "negative": safetensors_of(json.dumps({"a": entry(-16, 0)}).encode()),
    "overflow": safetensors_of(json.dumps({"a": entry(0, 64, (1 << 32, 1 << 32))}).encode()),
    "unknown dtype": safetensors_of(json.dumps({"a": entry(0, 64, (8, 8), "X9")}).encode()),
    "deep": safetensors_of(b"[" * 100_000),
    "no UTF-8": safetensors_of(b'{"\xff": 1}'),
}


@pytest.mark.parametrize("name", SAFETENSORS)
def test_safetensors_headers_that_lie_are_refused(name, tmp_path):
    (tmp_path / "x.safetensors").write_bytes(SAFETENSORS[name])
    with pytest.raises(UserError):
        import_activations(tmp_path / "x.safetensors", tmp_path / "out", layer=0, position="all")
    folder = saved("raysae", tmp_path / "sae")
    (folder / "sae.safetensors").write_bytes(SAFETENSORS[name])
    with pytest.raises(UserError):
        raysae.load_sae(folder)


def test_a_header_of_a_hundred_megabytes_is_refused(tmp_path):
    header = b'{"a": ' + json.dumps(entry(0, 64, (4, 4))).encode() + b"}"
    content = safetensors_of(header + b" " * (100_000_001 - len(header)))
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(UserError):
        import_activations(tmp_path / "x.safetensors", tmp_path / "out", layer=0, position="all")


def test_a_parquet_file_of_2_to_the_40_rows_is_refused(tmp_path):
    from tests.hostile.test_pages import mutations, thrift

    buffer = io.BytesIO()
    column = pa.array([[1.0, 2.0]] * 3, pa.list_(pa.float32()))
    pq.write_table(pa.table({"activations": column}), buffer)
    data = buffer.getvalue()
    start = mutations._footer_start(data)
    footer, _ = thrift.read_struct(data, start)
    for field in thrift.fields_of(footer):
        if field.number == 3 and field.value == 3 and field.kind == thrift.I64:
            field.value = 1 << 40
    lie = mutations._with_footer(data[:start], thrift.write_struct(footer))
    (tmp_path / "x.parquet").write_bytes(lie)
    with pytest.raises(UserError, match="1,099,511,627,776 rows"):
        import_activations(tmp_path / "x.parquet", tmp_path / "out", layer=0, position="all")


# Texts that unpack to more than memory holds


@pytest.mark.parametrize("suffix", [".txt", ".jsonl", ".csv", ".tsv"])
def test_a_line_without_end_is_refused(suffix, tmp_path, monkeypatch):
    monkeypatch.setattr(text_files, "LONGEST_LINE", 1000)
    path = tmp_path / f"x{suffix}.gz"
    start = {".jsonl": '{"text": "', ".csv": 'text\n"', ".tsv": 'text\n"'}.get(suffix, "")
    path.write_bytes(gzip.compress((start + "a" * 100_000).encode()))
    with pytest.raises(UserError, match="1,000 characters or more|field larger"):
        list(file_rows(str(path)))


def test_a_packed_list_without_end_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(text_files, "LONGEST_DOCUMENT", 1000)
    path = tmp_path / "x.json.gz"
    path.write_bytes(gzip.compress(b"[\n" + b'{"text": "a"},\n' * 1000 + b'{"text": "a"}]'))
    with pytest.raises(UserError, match=r"unpack it, or save it as JSON lines"):
        list(file_rows(str(path)))
