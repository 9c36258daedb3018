"""Where a shard's activations lie in its file, so that they can be read without decoding.

The column is uncompressed, PLAIN-encoded and without nulls, so the bytes of a page's values are the
rows, one after the other. The page header comes before them, in Thrift's compact protocol (Apache
Parquet format, ``PageHeader``; Thrift compact protocol specification).
"""

import os
from dataclasses import dataclass
from typing import Any

import pyarrow.parquet as pq

HEADER_BYTES = 512
DATA_PAGE, PLAIN = 0, 0
STRUCT, TRUE, FALSE, BINARY = 12, 1, 2, 8


@dataclass(frozen=True)
class Run:
    """Rows that lie one after the other in a file."""

    offset: int
    """Bytes from the start of the file."""
    rows: int


def activation_runs(handle: int, metadata: pq.FileMetaData) -> list[list[Run]] | None:
    """Find the activations of each row group in an open file.

    ``handle`` is the file's descriptor. The result has one list of runs for each row group. It is
    None when the activations are compressed or encoded, so that they must be decoded.
    """
    groups = [_group_runs(handle, metadata.row_group(i)) for i in range(metadata.num_row_groups)]
    return None if None in groups else [runs for runs in groups if runs is not None]


def _group_runs(handle: int, group: pq.RowGroupMetaData) -> list[Run] | None:
    column = next(
        c for i in range(group.num_columns) if (c := group.column(i)).path_in_schema == "activation"
    )
    if column.compression != "UNCOMPRESSED" or column.has_dictionary_page:
        return None
    runs: list[Run] = []
    at, end = column.data_page_offset, column.data_page_offset + column.total_compressed_size
    while at < end:
        header, length = _header(os.pread(handle, HEADER_BYTES, at))
        page = header.get(5)  # data_page_header
        if header.get(1) != DATA_PAGE or page is None or page.get(2) != PLAIN:
            return None
        runs.append(Run(at + length, page[1]))
        at += length + header[3]  # compressed_page_size
    return runs if sum(run.rows for run in runs) == group.num_rows else None


def _header(data: bytes) -> tuple[dict[int, Any], int]:
    """The fields of a page header by their numbers, and the header's length in bytes."""
    try:
        return _struct(data, 0)
    except IndexError:
        return {}, len(data)  # longer than our writer's headers: it holds statistics


def _struct(data: bytes, at: int) -> tuple[dict[int, Any], int]:
    fields: dict[int, Any] = {}
    number = 0
    while head := data[at]:
        at += 1
        if head >> 4:
            number += head >> 4
        else:
            number, at = _zigzag(data, at)
        fields[number], at = _value(head & 15, data, at)
    return fields, at + 1


def _value(kind: int, data: bytes, at: int) -> tuple[Any, int]:
    if kind == STRUCT:
        return _struct(data, at)
    if kind in (TRUE, FALSE):
        return kind == TRUE, at
    if kind == BINARY:
        length, at = _varint(data, at)
        return data[at : at + length], at + length
    return _zigzag(data, at)


def _zigzag(data: bytes, at: int) -> tuple[int, int]:
    value, at = _varint(data, at)
    return (value >> 1) ^ -(value & 1), at


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return value, at
