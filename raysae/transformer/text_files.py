"""Rows of text files exactly as they are written: CSV, JSON, plain text, Parquet; compressed or not.

No value is guessed to be a number, a date or missing: ``007`` stays ``007``, and ``NA`` stays ``NA``.
"""

import csv
import io
import json
import os
from collections.abc import Iterator
from itertools import chain
from typing import IO, Any

from raysae.errors import UserError
from raysae.storage.remote import is_uri
from raysae.storage.untrusted import regular_file

FILE_KINDS = {
    ".jsonl": "json", ".ndjson": "json", ".json": "json", ".csv": "csv", ".tsv": "csv",
    ".txt": "text", ".parquet": "parquet",
}  # fmt: skip
"""How a file is read, by its suffix in lower case."""
COMPRESSED = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2", ".xz": "xz"}
"""Suffixes that may follow, such as ``.jsonl.gz``, and the compression."""
BATCH_ROWS = 1024
LONGEST_LINE = 120_000_000
"""The most characters of a line: a row."""
LONGEST_DOCUMENT = 2_000_000_000
"""The most characters of a JSON file that is one list in one line."""
MARKS = {b"\xff\xfe\x00\x00": "utf-32", b"\x00\x00\xfe\xff": "utf-32", b"\xff\xfe": "utf-16",
         b"\xfe\xff": "utf-16"}  # fmt: skip
"""Byte order marks of encodings other than UTF-8, the longest first."""


class NumberText(str):
    """A number of a JSON file, as it is written there."""


def suffixes(path: str) -> tuple[str, str]:
    """The kind's suffix and the compression's, in lower case; empty when there is none.

    ``"a/X.JSONL.gz"`` gives ``(".jsonl", ".gz")``.
    """
    path = path.split("?")[0] if is_uri(path) else path  # only a URL has a query
    name = path.replace("\\", "/").rsplit("/", 1)[-1].lower()
    stem, dot, last = name.rpartition(".")
    compression = f".{last}" if dot and f".{last}" in COMPRESSED else ""
    if compression:
        stem, dot, last = stem.rpartition(".")
    return (f".{last}" if dot and stem else ""), compression


def is_text_file(path: str) -> bool:
    """Whether the name ends like a file that can be read here."""
    return suffixes(path)[0] in FILE_KINDS


def file_rows(path: str) -> Iterator[dict[str, Any]]:
    """Yield the rows of a file, local or at a URL that fsspec opens, on demand.

    Values of CSV and plain text are strings. Raises UserError, naming the line, when the file is not what
    its name says; errors of file systems as they are.
    """
    kind = FILE_KINDS[suffixes(path)[0]]
    if kind == "parquet":
        yield from _parquet_rows(path)
        return
    with _opened(path) as raw:
        readers = {"json": _json_rows, "csv": _csv_rows, "text": _text_rows}
        yield from readers[kind](path, raw)


def _opened(path: str) -> IO[bytes]:
    """Open a file for reading bytes, unpacked where it is compressed."""
    import pyarrow as pa
    from fsspec.compression import compr

    if "://" not in path:
        regular_file(path)  # opening a FIFO would wait for ever
    compression = COMPRESSED.get(suffixes(path)[1])
    if compression == "zstd":  # fsspec needs a package for it, pyarrow brings it
        return pa.CompressedInputStream(pa.PythonFile(_raw(path)), "zstd")
    return compr[compression](_raw(path), mode="rb")


def _raw(path: str) -> IO[bytes]:
    """Open a file as it is. In the name of a local one no character has a meaning of its own."""
    if os.path.isfile(path):
        return open(path, "rb")
    import fsspec

    return fsspec.open(path, "rb").open()


def _decoded(path: str, raw: IO[bytes]) -> io.TextIOWrapper:
    """The file's text: UTF-8, or the encoding of its byte order mark, which is no part of the text."""
    start = raw.read(4096)
    encoding = next((name for mark, name in MARKS.items() if start.startswith(mark)), "utf-8-sig")
    if encoding == "utf-8-sig" and b"\0" in start:
        raise UserError(f"{path}: holds zero bytes, so it is no text in UTF-8; save it as UTF-8")
    return io.TextIOWrapper(io.BufferedReader(_Joined(start, raw)), encoding=encoding, newline="\n")


class _Joined(io.RawIOBase):
    """Bytes that were read already, then the rest of the file."""

    def __init__(self, start: bytes, rest: IO[bytes]):
        self.start, self.rest = start, rest

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data, self.start = self.start[: len(buffer)], self.start[len(buffer) :]
        data = data or self.rest.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


def _lines(path: str, raw: IO[bytes]) -> Iterator[tuple[int, str]]:
    """Yield the lines, without their ends, with their numbers from 1."""
    number = 0
    try:
        for number, line in enumerate(_bounded(path, _decoded(path, raw)), 1):
            yield number, line.rstrip("\r\n")
    except UnicodeError as error:
        raise _no_utf8(path, number, error) from None


def _bounded(path: str, text: io.TextIOWrapper) -> Iterator[str]:
    """The lines of a text. Raises UserError at a line longer than memory should hold: a few bytes can
    unpack to any number of them."""
    for number, line in enumerate(iter(lambda: text.readline(LONGEST_LINE), ""), 1):
        yield line if len(line) < LONGEST_LINE else _long_line(path, number, line, text)


def _long_line(path: str, number: int, start: str, rest: io.TextIOWrapper) -> str:
    """A line of which ``start`` is read. Raises UserError when it is longer than a row or document is."""
    is_document = number == 1 and start.lstrip().startswith("[")
    most = LONGEST_DOCUMENT if is_document else LONGEST_LINE
    line = start + rest.readline(most - len(start)) if is_document else start
    if len(line) < most or line.endswith("\n"):
        return line
    raise UserError(
        f"{path}: line {number} has {most:,} characters or more; expected rows of a text each: cut it "
        "into several lines"
    )


def _no_utf8(path: str, number: int, error: UnicodeError) -> UserError:
    return UserError(
        f"{path}: not UTF-8 at line {number + 1} or shortly after ({error}); save it as UTF-8"
    )


def _text_rows(path: str, raw: IO[bytes]) -> Iterator[dict[str, Any]]:
    for _, line in _lines(path, raw):
        yield {"text": line}


def _csv_rows(path: str, raw: IO[bytes]) -> Iterator[dict[str, Any]]:
    csv.field_size_limit(LONGEST_LINE)
    mark = "\t" if suffixes(path)[0] == ".tsv" else ","
    rows = csv.reader(_bounded(path, _decoded(path, raw)), delimiter=mark, strict=True)
    try:
        header = next(rows, [])
        twice = sorted({name for name in header if header.count(name) > 1})
        if twice:
            raise UserError(f"{path}: column {twice[0]!r} is there twice; name each column once")
        for row in rows:
            if not row:  # an empty line
                continue
            if len(row) != len(header):
                raise UserError(
                    f"{path}: line {rows.line_num} has {len(row)} values, the first line "
                    f"{len(header)} columns; quote values that hold {mark!r} or a quote"
                )
            yield dict(zip(header, row, strict=True))
    except UnicodeError as error:
        raise _no_utf8(path, rows.line_num, error) from None
    except csv.Error as error:
        raise UserError(f"{path}: line {rows.line_num} is not CSV ({error})") from None


def _json_rows(path: str, raw: IO[bytes]) -> Iterator[dict[str, Any]]:
    """One object a line, or one list of objects."""
    lines = (line for line in _lines(path, raw) if line[1].strip())
    first = next(lines, None)
    if first is None:
        return
    if first[1].lstrip().startswith("[") or not _is_json(first[1]):
        yield from _json_document(path, _whole(path, chain([first], lines)))
        return
    for row, (number, line) in enumerate(chain([first], lines)):
        place = f"line {number} (row {row})"
        yield _object(path, place, _loads(path, line, place))


def _whole(path: str, lines: Iterator[tuple[int, str]]) -> str:
    """The lines in one text. Raises UserError when a packed file has too many."""
    found, length = [], 0
    for _, line in lines:
        found.append(line)
        length += len(line)
        if length > LONGEST_DOCUMENT and suffixes(path)[1]:
            raise UserError(
                f"{path}: one JSON value of more than {LONGEST_DOCUMENT:,} characters; unpack it, or "
                "save it as JSON lines (.jsonl)"
            )
    return "\n".join(found)


def _json_document(path: str, text: str) -> Iterator[dict[str, Any]]:
    """The rows of a file that is one value over several lines, or one list."""
    found = _loads(path, text)
    for number, row in enumerate(found if isinstance(found, list) else [found]):
        yield _object(path, f"row {number}", row)


def _is_json(line: str) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True


def _loads(path: str, text: str, place: str = "") -> Any:
    """The value of a JSON text that stands at ``place``, or is the whole file."""
    try:
        return json.loads(text, parse_float=NumberText, parse_int=NumberText)
    except ValueError as error:
        where, reason = place or f"line {getattr(error, 'lineno', 1)}", getattr(error, "msg", error)
        raise UserError(f"{path}: cannot be read: {where} is not JSON ({reason})") from None
    except RecursionError:
        raise UserError(f"{path}: cannot be read: {place} is nested too deeply") from None


def _object(path: str, place: str, row: Any) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise UserError(
            f"{path}: {place} is {type(row).__name__}; expected an object with named columns, such as "
            '{"text": "..."}'
        )
    return row


def _parquet_rows(path: str) -> Iterator[dict[str, Any]]:
    import pyarrow.parquet as pq

    if "://" not in path:
        regular_file(path)
    with _raw(path) as raw:
        for batch in pq.ParquetFile(raw).iter_batches(BATCH_ROWS):
            yield from batch.to_pylist()
