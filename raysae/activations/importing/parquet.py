"""Parquet files: one, or a folder of them.

Parquet can only be unpacked in the file's order, but the store needs a shuffled order. So all rows are
unpacked once, to a temporary file, and read from there. The row groups do not change the store's order.

Shapes: N rows, T tokens, D d_in.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from raysae.activations.importing.arrow import is_float_list, is_list, storage, storage_type
from raysae.activations.importing.names import (
    find_activation,
    find_role,
    may_be_text,
    other_way,
)
from raysae.activations.importing.request import Request
from raysae.activations.importing.scratch import Scratch, refuse_full_disk
from raysae.activations.importing.source import (
    COLUMN_ROLES,
    Source,
    as_sequences,
    dtype_name,
    make_column,
)
from raysae.activations.schema import D_IN_KEY, DTYPE_KEY, ITEM_BYTES, torch_dtype
from raysae.errors import UserError

SUFFIXES = (".parquet", ".pq", ".parq")
BATCH_BYTES = 4 * 2**20
_FLOATS = {pa.float16(): torch.float16, pa.float32(): torch.float32, pa.float64(): torch.float64}


@dataclass(frozen=True)
class _Layout:
    """The columns to read, and dtype and shape of a row of the activation column."""

    activation: str
    dtype: torch.dtype
    shape: tuple[int, ...] | None
    """``[D]`` or ``[T, D]``; None when the schema does not give it."""
    columns: dict[str, str]
    """Names by role."""


@dataclass
class _Unpacked:
    scratch: Scratch
    width: int | None = None
    """Values per row; None until the first batch."""
    rows: int = 0
    numbers: dict[str, list[NDArray[np.int64]]] = field(default_factory=dict)


def open_parquet(request: Request) -> Source:
    """Unpack the activation column, and read the columns of whole numbers beside it.

    Raises UserError, naming file and row, when rows are ragged, missing or unreadable, or the disk is
    too small.
    """
    paths = parquet_files(request.path)
    files = [_open(path) for path in paths]
    layouts = [_layout(path, file, request) for path, file in zip(paths, files, strict=True)]
    _refuse_mixture(paths, layouts)
    layout, total = layouts[0], sum(file.metadata.num_rows for file in files)
    unpacked = _Unpacked(Scratch(request.scratch))
    for path, file in zip(paths, files, strict=True):
        for start, batch in _batches(path, file, layout):
            if unpacked.width is None:
                unpacked.width = _first_width(batch.column(layout.activation), layout)
                size = total * unpacked.width * layout.dtype.itemsize
                refuse_full_disk(request.scratch, size, "unpacking the rows")
            _unpack(batch, unpacked, layout, path, start)
            request.progress("unpacking", unpacked.rows, total)
    return _source(request.path, paths, layout, unpacked)


def parquet_files(path: Path) -> list[Path]:
    """The file itself, or a folder's Parquet files sorted by name, without those in subfolders."""
    if not path.is_dir():
        return [path]
    files = sorted(file for file in path.iterdir() if file.suffix in SUFFIXES)
    return [file for file in files if not file.name.startswith((".", "_"))]


def _open(path: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path, memory_map=True, page_checksum_verification=True)
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: Exception) -> UserError:
    return UserError(f"{path}: not a readable Parquet file: truncated or damaged ({error})")


def _layout(path: Path, file: pq.ParquetFile, request: Request) -> _Layout:
    schema, keys = file.schema_arrow, request.options.keys
    possible = [column.name for column in schema if _possible(column.type)]
    contents = {column.name: str(column.type) for column in schema}
    name = find_activation(path, possible, contents, keys)
    dtype, shape = _row_of(path, schema, name)
    others = [
        column.name
        for column in schema
        if column.name != name and (_whole(column.type) or not may_be_text(column.name))
    ]
    found = {role: find_role(role, others, keys, path) for role in COLUMN_ROLES}
    columns = {role: column for role, column in found.items() if column}
    for role, column in columns.items():
        if not _whole(schema.field(column).type):
            raise UserError(
                f"{path}: column {column} ({role}) is {schema.field(column).type}; expected whole "
                f"numbers; {other_way(role)}"
            )
    return _Layout(name, dtype, shape, columns)


def _possible(kind: pa.DataType) -> bool:
    kind = storage_type(kind)
    return pa.types.is_fixed_size_binary(kind) or is_float_list(kind)


def _whole(kind: pa.DataType) -> bool:
    return pa.types.is_integer(kind)


def _row_of(path: Path, schema: pa.Schema, name: str) -> tuple[torch.dtype, tuple[int, ...] | None]:
    """The dtype and the shape of a row. Raises UserError when the column cannot be activations."""
    kind = schema.field(name).type
    plain = storage_type(kind)
    if pa.types.is_fixed_size_binary(plain):
        return _binary_row(path, schema, name, plain.byte_width)
    if not is_list(plain) or plain.value_type not in _FLOATS:
        raise UserError(
            f"{path}: column {name} is {kind}; expected lists of float16, float32 or float64"
        )
    dtype = _FLOATS[plain.value_type]
    if isinstance(kind, pa.FixedShapeTensorType):
        return dtype, _tensor_shape(path, name, kind)
    return dtype, (plain.list_size,) if pa.types.is_fixed_size_list(plain) else None


def _binary_row(
    path: Path, schema: pa.Schema, name: str, width: int
) -> tuple[torch.dtype, tuple[int, ...]]:
    metadata = schema.metadata or {}
    dtype, d_in = metadata.get(DTYPE_KEY, b"").decode(), metadata.get(D_IN_KEY, b"").decode()
    if dtype not in ITEM_BYTES or not d_in.isdigit() or int(d_in) * ITEM_BYTES[dtype] != width:
        raise UserError(
            f"{path}: column {name} holds {width} bytes a row, and the file's metadata does not give "
            f"their dtype ({DTYPE_KEY.decode()} is {dtype!r}, {D_IN_KEY.decode()} {d_in!r}); save lists"
        )
    return torch_dtype(dtype), (int(d_in),)


def _tensor_shape(path: Path, name: str, kind: pa.FixedShapeTensorType) -> tuple[int, ...]:
    shape, order = tuple(kind.shape), kind.permutation
    if len(shape) not in (1, 2) or (order is not None and list(order) != sorted(order)):
        raise UserError(
            f"{path}: column {name} is {kind}; expected tensors [d_in] or [tokens, d_in], their "
            "dimensions in order"
        )
    return shape


def _refuse_mixture(paths: list[Path], layouts: list[_Layout]) -> None:
    for path, layout in zip(paths, layouts, strict=True):
        if layout != layouts[0]:
            raise UserError(
                f"{path}: its columns are not those of {paths[0].name}: {_description(layout)}, there "
                f"{_description(layouts[0])}; import them one by one"
            )


def _description(layout: _Layout) -> str:
    columns = ", ".join([layout.activation, *layout.columns.values()])
    shape = list(layout.shape) if layout.shape else "lists"
    return f"{columns} ({shape} of {dtype_name(layout.dtype)})"


def _batches(
    path: Path, file: pq.ParquetFile, layout: _Layout
) -> Iterator[tuple[int, pa.RecordBatch]]:
    """The wanted columns in batches of a few rows, each with the number of its first row."""
    groups = [file.metadata.row_group(number) for number in range(file.metadata.num_row_groups)]
    widest = max((group.total_byte_size / max(group.num_rows, 1) for group in groups), default=1)
    size, start = int(min(max(BATCH_BYTES // max(widest, 1), 1), 65_536)), 0
    try:
        for batch in file.iter_batches(size, columns=[layout.activation, *layout.columns.values()]):
            yield start, batch
            start += len(batch)
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(path, error) from None


def _first_width(column: pa.Array, layout: _Layout) -> int:
    if layout.shape is not None:
        return int(np.prod(layout.shape))
    return len(column[0]) if len(column) and column[0].is_valid else 0


def _unpack(
    batch: pa.RecordBatch, unpacked: _Unpacked, layout: _Layout, path: Path, start: int
) -> None:
    """Append a batch's rows to ``unpacked``."""
    for name in batch.schema.names:
        _refuse_null(batch.column(name), f"{path}: {name}", start)
    column = batch.column(layout.activation)
    lists = storage(column)
    assert unpacked.width is not None, "known since the first batch"
    if pa.types.is_fixed_size_binary(lists.type):
        unpacked.scratch.write(_bytes(lists))
    else:
        where = f"{path}: {layout.activation}"
        unpacked.scratch.write(_values(lists, unpacked.width, where, start))
    for role, name in layout.columns.items():
        numbers = batch.column(name).to_numpy(zero_copy_only=False).astype(np.int64)
        unpacked.numbers.setdefault(role, []).append(numbers)
    unpacked.rows += len(batch)


def _bytes(column: pa.Array) -> NDArray[np.uint8]:
    width = column.type.byte_width
    data = np.frombuffer(column.buffers()[1], np.uint8)
    return data[column.offset * width : (column.offset + len(column)) * width]


def _values(column: pa.Array, width: int, where: str, start: int) -> NDArray[np.generic]:
    """All values of a column of lists, in one dimension. Raises UserError on ragged rows or nulls."""
    lengths = pc.list_value_length(column).to_numpy(zero_copy_only=False)
    other = np.flatnonzero(lengths != width)
    if len(other):
        raise UserError(
            f"{where}: row {start + other[0]} has {lengths[other[0]]} values, the first row "
            f"{width}; expected the same number (d_in) in every row"
        )
    flat = column.flatten()
    if flat.null_count:
        at = np.flatnonzero(flat.is_null().to_numpy(zero_copy_only=False))[0] // width
        raise UserError(f"{where}: row {start + at} holds a null; expected a number")
    return flat.to_numpy(zero_copy_only=True)


def _refuse_null(column: pa.Array, where: str, start: int) -> None:
    if column.null_count:
        at = np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False))[0]
        raise UserError(
            f"{where}: row {start + at} is null ({column.null_count} in its batch); expected a value "
            "in every row"
        )


def _source(path: Path, paths: list[Path], layout: _Layout, unpacked: _Unpacked) -> Source:
    if not unpacked.rows or not unpacked.width:
        raise UserError(f"{path}: {layout.activation} has no rows, or empty ones")
    shape = layout.shape or (unpacked.width,)
    rows = unpacked.scratch.rows(layout.dtype, shape)
    source = Source(
        path, "parquet", tuple(paths), (as_sequences(rows, str(path)),),
        tokenwise=len(shape) == 2, activation=layout.activation,
    )  # fmt: skip
    for role, name in layout.columns.items():
        values = np.concatenate(unpacked.numbers[role])
        source = source.with_column(role, make_column(role, name, values, source))
    return source
