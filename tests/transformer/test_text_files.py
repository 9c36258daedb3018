"""Files as people have them: every value is read as it is written, or refused with its type and place."""

import bz2
import datetime
import gzip
import json
import lzma

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raysae.config.source import SourceConfig
from raysae.errors import UserError
from raysae.extraction.plan import text_spec
from raysae.transformer.texts import read_documents

AS_WRITTEN = ["18", "007", "1.10", "None", "NA", "nan", "null", "true", "2024-01-05", "1e5", " x "]


def read_texts(path, **source):
    spec = text_spec(SourceConfig(**{"dataset": str(path), "text": "text", **source}))
    return [document.text for document in read_documents(spec)]


def lines(rows):
    return "\n".join(json.dumps({"text": row}) for row in rows)


def zstd(data):
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as out:
        out.write(data)
    return sink.getvalue().to_pybytes()


@pytest.mark.parametrize("folder", [False, True])
@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".json", ".txt", ".parquet"])
def test_texts_that_look_like_something_else_stay_as_they_are(tmp_path, suffix, folder):
    """The same for a file, and for a folder that is read as a hub data set is."""
    path = tmp_path / f"train{suffix}"
    if suffix in (".csv", ".tsv", ".txt"):
        head = "" if suffix == ".txt" else "text\n"
        path.write_text(head + "\n".join(AS_WRITTEN) + "\n")
    elif suffix == ".parquet":
        pq.write_table(pa.table({"text": AS_WRITTEN}), path)
    else:
        path.write_text(lines(AS_WRITTEN))
    assert read_texts(tmp_path if folder else path) == AS_WRITTEN


@pytest.mark.parametrize("kind", ["line feed", "quotes", "a separator", "CRLF"])
def test_csv_with_marks_in_its_values(tmp_path, kind):
    value, end = {
        "line feed": ("two\nlines", "\n"), "quotes": ('she said "no"', "\n"),
        "a separator": ("a, b", "\n"), "CRLF": ("one line", "\r\n"),
    }[kind]  # fmt: skip
    quoted = '"' + value.replace('"', '""') + '"'
    path = tmp_path / "d.csv"
    path.write_bytes(f"id,text{end}007,{quoted}{end}{end}8,other{end}".encode())
    assert read_texts(path) == [value, "other"]
    assert read_texts(path, text="{id}: {text}")[0] == f"007: {value}"


def test_numbers_of_json_go_into_a_template_as_they_are_written(tmp_path):
    path = tmp_path / "d.jsonl"
    path.write_text('{"q": "How many?", "a": 7}\n{"q": "How much?", "a": 1.10}\n')
    assert read_texts(path, text="{q} {a}") == ["How many? 7", "How much? 1.10"]


@pytest.mark.parametrize(
    ("encoding", "suffix"),
    [(e, s) for e in ("utf-8-sig", "utf-16") for s in (".csv", ".jsonl", ".txt", ".json")],
)
def test_a_byte_order_mark_is_no_text(tmp_path, encoding, suffix):
    content = {".csv": "text\nfirst\n", ".txt": "first\n"}.get(suffix, '{"text": "first"}\n')
    path = tmp_path / f"d{suffix}"
    path.write_bytes(content.encode(encoding))
    assert read_texts(path) == ["first"]


@pytest.mark.parametrize(
    ("suffix", "packed"),
    [(".gz", gzip.compress), (".bz2", bz2.compress), (".xz", lzma.compress), (".zst", zstd)],
)
@pytest.mark.parametrize("name", ["d.jsonl", "D.JSONL", "d.ndjson", "d.csv", "a.b.txt"])
def test_compressed_files_and_names_in_capitals(tmp_path, name, suffix, packed):
    content = {"d.csv": "text\nfirst", "a.b.txt": "first"}.get(name, '{"text": "first"}')
    (tmp_path / name).write_text(content)
    path = tmp_path / f"{name}{suffix}"
    path.write_bytes(packed(content.encode()))
    assert read_texts(tmp_path / name) == read_texts(path) == ["first"]
    assert read_texts(path.rename(tmp_path / f"{name}{suffix}".upper())) == ["first"]


def test_a_list_of_objects_and_one_object(tmp_path):
    rows = [{"text": "one"}, {"text": "two"}]
    (tmp_path / "list.json").write_text(json.dumps(rows, indent=2))
    (tmp_path / "one.json").write_text(json.dumps(rows[0], indent=2))
    assert read_texts(tmp_path / "list.json") == ["one", "two"]
    assert read_texts(tmp_path / "one.json") == ["one"]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ([["one", "two"]], "list of str; expected text; write one text a row"),
        ([[{"role": "user", "content": "hi"}]], "list of dict; .*source.chat_column"),
        ([{"a": "b"}], "dict; expected text"),
        ([b"bytes"], "bytes; expected text"),
        ([1.5], "float; expected text; save the column as text"),
        ([True], "bool; expected text"),
        ([datetime.date(2024, 1, 5)], "date; expected text"),
        ([datetime.datetime(2024, 1, 5)], "datetime; expected text"),
    ],
    ids=str,
)
def test_what_is_no_text_is_refused_with_its_type(tmp_path, values, words):
    pq.write_table(pa.table({"text": pa.array(values)}), tmp_path / "d.parquet")
    with pytest.raises(
        UserError, match=rf"source.text 'text': column 'text' of row 0 .* is {words}"
    ):
        read_texts(tmp_path / "d.parquet")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("d.json", b'{"text": ["one", "two"]}', "is list of str; .*saved by rows"),
        ("d.jsonl", b'{"text": "one"}\n["two"]\n', "line 2 .row 1. is list; expected an object"),
        ("d.jsonl", b'{"text": "one"}\n{"text": \n', "line 2 .row 1. is not JSON"),
        ("d.jsonl", b'{"text": "\\ud83d"}', "row 0 .* is no valid text"),
        ("d.csv", b"id,text\n1,one\n2\n", "line 3 has 1 values, the first line 2 columns"),
        ("d.csv", b"text,text\none,two\n", "column 'text' is there twice"),
        ("d.csv", b'text\n"never closed\n', "line 2 is not CSV"),
        ("d.txt", b"caf\xe9\n", "not UTF-8 at line 1 or shortly after .*; save it as UTF-8"),
        ("d.jsonl", '{"text": "one"}'.encode("utf-16-le"), "holds zero bytes, so it is no text"),
        ("d.jsonl.gz", b'{"text": "one"}', "cannot be read beyond row 0"),
        ("d.xlsx", b"PK", "unknown kind of file; expected one of .jsonl, .ndjson, .json, .csv"),
        ("d", b"one", "unknown kind of file"),
    ],
)
def test_damaged_files_are_refused_with_the_place(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=words):
        read_texts(tmp_path / name)


def test_a_large_file_is_read_on_demand(tmp_path):
    path = tmp_path / "d.jsonl"
    with path.open("w") as file:
        file.writelines(f'{{"text": "number {i}"}}\n' for i in range(200_000))
        file.write("not JSON, but nobody comes this far")
    assert read_texts(path, sequences=3) == ["number 0", "number 1", "number 2"]


@pytest.mark.parametrize(
    ("settings", "words"), [("sep: ';'", "sep"), ("na_values: ['x']", "na_values")]
)
def test_a_data_set_that_says_how_its_csv_is_read_is_not_guessed_at(tmp_path, settings, words):
    (tmp_path / "train.csv").write_text("text;n\n007;1\n")
    head = f"---\nconfigs:\n- config_name: default\n  data_files: train.csv\n  {settings}\n---\n"
    (tmp_path / "README.md").write_text(head)
    with pytest.raises(UserError, match=rf"its own settings .* \({words}\).* would be guessed"):
        read_texts(tmp_path)
