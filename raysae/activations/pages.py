"""Where a shard's activations lie in its file, so that they can be read without decoding.

The column is uncompressed, PLAIN-encoded and without nulls, so the bytes of a page's values are the
rows, one after the other. The page header comes before them, in Thrift's compact protocol (Apache
Parquet format, ``PageHeader``; Thrift compact protocol specification).

A file may be damaged or hostile, so nothing in it is believed. Every field of a header has the expected
type and value, or the row group is left to pyarrow, which decodes it or refuses it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyarrow.parquet as pq

HEADER_BYTES = 512
MAGIC_BYTES = 4
FOOTER_BYTES = 8
"""The footer's length and the magic bytes, at the end of a file."""
MOST_DEPTH = 4
"""Structs in structs; a page header of Parquet has three."""
LONGEST_VARINT = {4: 3, 5: 5, 6: 10}
"""Bytes of the longest number of each kind of whole number."""
LARGEST = {4: 2**15, 5: 2**31, 6: 2**63}
TRUE, FALSE, INT32, BINARY, STRUCT = 1, 2, 5, 8, 12

DATA_PAGE, PLAIN, LEVELS = 0, 0, (3, 4)
TYPE, UNPACKED_SIZE, SIZE, CHECKSUM, DATA_HEADER = 1, 2, 3, 4, 5
"""The fields of a page header."""
VALUES, ENCODING, DEFINITION, REPETITION, STATISTICS = 1, 2, 3, 4, 5
"""The fields of a data page's header."""

MOST_UNPACKED = 1000
"""A file is refused when it claims more than so many times its own size in rows."""

ReadAt = Callable[[int, int], bytes]
"""Reads so many bytes of a file from an offset on."""
Fields = dict[int, tuple[int, Any]]
"""The fields of a struct by number: the kind of each, and its value."""


@dataclass(frozen=True)
class Run:
    """Rows that lie one after the other in a file."""

    offset: int
    """Bytes from the start of the file."""
    rows: int


def footer_problem(metadata: pq.FileMetaData, size: int, row_bytes: int) -> str | None:
    """What contradicts itself in the footer of a file of ``size`` bytes; None when nothing does.

    ``row_bytes`` is the least number of bytes that a row takes when it has been read. This is asked
    before any memory is allocated for the rows.
    """
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    counts = [group.num_rows for group in groups]
    if min(counts, default=0) < 0 or sum(counts) != metadata.num_rows:
        return f"row groups of {counts[:5]} rows, {metadata.num_rows} in all"
    if sum(counts) * row_bytes > MOST_UNPACKED * size:
        return f"{sum(counts):,} rows of {row_bytes:,} bytes in a file of {size:,} bytes"
    return None


def uneven_columns(metadata: pq.FileMetaData) -> str | None:
    """Where a column of single values has not one for each row; None when there is no such column."""
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        for index in range(group.num_columns):
            column = group.column(index)
            if column.num_values != group.num_rows:
                name, rows = column.path_in_schema, group.num_rows
                return f"{column.num_values:,} values of {name} for {rows:,} rows"
    return None


def activation_runs(
    read: ReadAt, size: int, metadata: pq.FileMetaData, row_bytes: int
) -> list[list[Run]] | None:
    """Find the activations of each row group in a file of ``size`` bytes; a row is ``row_bytes`` long.

    ``read(length, at)`` gives the file's bytes from ``at`` on. The result has one list of runs for each
    row group. It is None when the activations are compressed or encoded, or a page header is not what
    it should be, so that they must be decoded.
    """
    found = []
    for number in range(metadata.num_row_groups):
        runs = _group_runs(read, metadata.row_group(number), row_bytes, size - FOOTER_BYTES)
        if runs is None:
            return None
        found.append(runs)
    return found


def _group_runs(
    read: ReadAt, group: pq.RowGroupMetaData, row_bytes: int, size: int
) -> list[Run] | None:
    column = group.column(0)  # pyarrow goes by the schema's order, whatever the chunk says
    at, end = column.data_page_offset, column.data_page_offset + column.total_compressed_size
    plain = column.compression == "UNCOMPRESSED" and not column.has_dictionary_page
    if not plain or column.path_in_schema != "activation" or not MAGIC_BYTES <= at <= end <= size:
        return None
    runs: list[Run] = []
    left = group.num_rows
    while left > 0:  # each page has a row, so this ends
        run = _page(read(min(HEADER_BYTES, end - at), at), at, row_bytes)
        if run is None or run.rows > left or run.offset + run.rows * row_bytes > end:
            return None
        runs.append(run)
        at, left = run.offset + run.rows * row_bytes, left - run.rows
    return runs if at == end else None


def _page(data: bytes, at: int, row_bytes: int) -> Run | None:
    """The rows of the page whose header ``data`` starts with, at ``at`` in the file.

    None unless it is a data page of at least one plain row, and each of its sizes fits.
    """
    try:
        fields, length = _struct(data, 0)
        header = _whole(fields, (TYPE, UNPACKED_SIZE, SIZE), (CHECKSUM,), DATA_HEADER)
        page = _whole(
            fields[DATA_HEADER][1], (VALUES, ENCODING, DEFINITION, REPETITION), (), STATISTICS
        )
    except (IndexError, KeyError, _Unexpected):  # IndexError: longer than our writer's headers
        return None
    rows, encodings = page[VALUES], (page[DEFINITION], page[REPETITION])
    sizes = {header[SIZE], header[UNPACKED_SIZE], rows * row_bytes}
    plain = header[TYPE] == DATA_PAGE and page[ENCODING] == PLAIN
    if not plain or rows < 1 or len(sizes) > 1 or not set(encodings) <= set(LEVELS):
        return None
    return Run(at + length, rows)


class _Unexpected(Exception):
    """A header that is no Thrift, or has a field that no page of ours has."""


def _whole(
    fields: Fields, needed: tuple[int, ...], allowed: tuple[int, ...], struct: int
) -> dict[int, int]:
    """The values of the ``needed`` fields, each a 32-bit number.

    Beside them only the ``allowed`` numbers and the field ``struct`` may be there.
    """
    for number, (kind, _) in fields.items():
        if kind != (STRUCT if number == struct else INT32):
            raise _Unexpected
        if number not in (*needed, *allowed, struct):
            raise _Unexpected
    return {number: fields[number][1] for number in needed}


def _struct(data: bytes, at: int, depth: int = 0) -> tuple[Fields, int]:
    """The fields of the struct at ``at``, and the index after it. Raises IndexError at the data's end,
    _Unexpected on anything that is not well-formed."""
    if depth > MOST_DEPTH:
        raise _Unexpected
    fields: Fields = {}
    number = 0
    while head := data[at]:
        at, before = at + 1, number
        if head >> 4:
            number += head >> 4
        else:
            number, at = _zigzag(4, data, at)
        if number <= before:  # out of order, or twice
            raise _Unexpected
        value, at = _value(head & 15, data, at, depth)
        fields[number] = head & 15, value
    return fields, at + 1


def _value(kind: int, data: bytes, at: int, depth: int) -> tuple[Any, int]:
    if kind == STRUCT:
        return _struct(data, at, depth + 1)
    if kind in (TRUE, FALSE):
        return kind == TRUE, at
    if kind == BINARY:
        length, at = _varint(INT32, data, at)
        if at + length > len(data):
            raise _Unexpected
        return data[at : at + length], at + length
    if kind in LARGEST:
        return _zigzag(kind, data, at)
    raise _Unexpected  # lists, maps and doubles do not occur in a page header


def _zigzag(kind: int, data: bytes, at: int) -> tuple[int, int]:
    value, at = _varint(kind, data, at)
    value = (value >> 1) ^ -(value & 1)
    if not -LARGEST[kind] <= value < LARGEST[kind]:
        raise _Unexpected
    return value, at


def _varint(kind: int, data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for place in range(LONGEST_VARINT[kind]):
        byte = data[at + place]
        value |= (byte & 127) << (7 * place)
        if byte < 128:
            return value, at + place + 1
    raise _Unexpected
