"""Parquet files: one, or a folder of them.

Parquet can only be unpacked in the file's order, but the store needs a shuffled order. So all rows are
unpacked once, to a temporary file, and read from there. The row groups do not change the store's order.

Shapes: N rows, T tokens, D d_in.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from raysae.activations.damage import damage_told
from raysae.activations.importing.arrow import (
    is_float_list,
    is_grid,
    is_list,
    is_number,
    is_text,
    joined,
    storage,
    storage_type,
    values_of,
)
from raysae.activations.importing.columns import IDS
from raysae.activations.importing.named import with_columns
from raysae.activations.importing.names import (
    find_activation,
    find_columns,
    may_be_other,
    other_way,
)
from raysae.activations.importing.request import Request
from raysae.activations.importing.scratch import Scratch, refuse_full_disk
from raysae.activations.importing.source import Source, as_sequences, dtype_name
from raysae.activations.pages import footer_problem
from raysae.activations.schema import D_IN_KEY, DTYPE_KEY, ITEM_BYTES, torch_dtype
from raysae.errors import UserError
from raysae.storage.untrusted import regular_file

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
    grid: bool = False
    """Whether a row is a list of lists: a sequence's tokens, whose number may differ."""


@dataclass
class _Unpacked:
    scratch: Scratch
    width: int | None = None
    """Values per row; None until the first batch."""
    rows: int = 0
    columns: dict[str, list[Any]] = field(default_factory=dict)
    """The values of other columns, batch by batch, by name."""
    lengths: list[NDArray[np.int64]] = field(default_factory=list)
    """Tokens of each row of a grid, batch by batch."""


def open_parquet(request: Request) -> Source:
    """Unpack the activation column, and read the columns of whole numbers beside it.

    Raises UserError, naming file and row, when rows are ragged, missing or unreadable, or the disk is
    too small.
    """
    paths = parquet_files(request.path)
    files = [_open(path) for path in paths]
    with damage_told(request.path, "Parquet file"):
        layouts = [_layout(path, file, request) for path, file in zip(paths, files, strict=True)]
    _refuse_mixture(paths, layouts)
    layout, total = layouts[0], sum(file.metadata.num_rows for file in files)
    unpacked = _Unpacked(Scratch(request.scratch))
    for path, file in zip(paths, files, strict=True):
        for start, batch in _batches(path, file, layout):
            if unpacked.width is None:
                unpacked.width = _first_width(batch.column(layout.activation), layout)
                tokens = (
                    len(batch.column(layout.activation)[0]) if layout.grid and len(batch) else 1
                )
                size = total * tokens * unpacked.width * layout.dtype.itemsize
                refuse_full_disk(request.scratch, size, "unpacking the rows")
            _unpack(batch, unpacked, layout, path, start)
            request.progress("unpacking", unpacked.rows, total)
    return _source(request, paths, layout, unpacked)


def parquet_files(path: Path) -> list[Path]:
    """The file itself, or a folder's Parquet files sorted by name, without those in subfolders."""
    if not path.is_dir():
        return [path]
    files = sorted(file for file in path.iterdir() if file.suffix in SUFFIXES)
    return [regular_file(file) for file in files if not file.name.startswith((".", "_"))]


def _open(path: Path) -> pq.ParquetFile:
    with damage_told(path, "Parquet file"):
        file = pq.ParquetFile(path, memory_map=True, page_checksum_verification=True)
        if problem := footer_problem(file.metadata, path.stat().st_size, 1):
            raise ValueError(f"its footer claims {problem}")
        return file


def _layout(path: Path, file: pq.ParquetFile, request: Request) -> _Layout:
    schema, keys = file.schema_arrow, request.options.keys
    possible = [column.name for column in schema if _possible(column.type)]
    contents = {column.name: str(column.type) for column in schema}
    name = find_activation(path, possible, contents, keys)
    dtype, shape = _row_of(path, schema, name)
    names = [
        column.name
        for column in schema
        if column.name != name
        and (_fits("sequence", column.type) or not _may_be_other(column.name, keys))
    ]
    texts = [column.name for column in schema if is_text(column.type)]
    columns = find_columns(names, texts, keys, path)
    for role, column in columns.items():
        kind = schema.field(column).type
        if not _fits(role, kind):
            raise UserError(
                f"{path}: column {column} ({role}) is {kind}; expected "
                f"{'whole numbers or text' if role in IDS else 'whole numbers'}; {other_way(role)}"
            )
    plain = {role: column for role, column in columns.items() if role != "text"}
    if "text" in columns and is_text(schema.field(columns["text"]).type):
        plain["text"] = columns["text"]
    return _Layout(name, dtype, shape, plain, is_grid(schema.field(name).type))


def _may_be_other(name: str, keys: Mapping[str, str]) -> bool:
    """Whether a column of this name may hold something else than ids; not when a key names it."""
    return name not in keys.values() and may_be_other(name)


def _fits(role: str, kind: pa.DataType) -> bool:
    """Whether a column of this type can play the role."""
    kind = storage_type(kind)
    if is_list(kind) and role in ("token_id", "token_index", "mask", "padding"):
        kind = kind.value_type
    if role in ("mask", "padding"):
        return is_number(kind)
    return pa.types.is_integer(kind) or role == "text" or (role in IDS and is_text(kind))


def _possible(kind: pa.DataType) -> bool:
    kind = storage_type(kind)
    return pa.types.is_fixed_size_binary(kind) or is_float_list(kind) or is_grid(kind)


def _row_of(path: Path, schema: pa.Schema, name: str) -> tuple[torch.dtype, tuple[int, ...] | None]:
    """The dtype and the shape of a row. Raises UserError when the column cannot be activations."""
    kind = schema.field(name).type
    plain = storage_type(kind)
    if pa.types.is_fixed_size_binary(plain):
        return _binary_row(path, schema, name, plain.byte_width)
    inner = plain.value_type if is_grid(plain) else plain
    if not is_list(inner) or inner.value_type not in _FLOATS:
        raise UserError(
            f"{path}: column {name} is {kind}; expected lists of float16, float32 or float64"
        )
    dtype = _FLOATS[inner.value_type]
    if is_grid(plain):
        return dtype, None
    if isinstance(kind, pa.FixedShapeTensorType):
        return dtype, _tensor_shape(path, name, kind)
    return dtype, (plain.list_size,) if pa.types.is_fixed_size_list(plain) else None


def _binary_row(
    path: Path, schema: pa.Schema, name: str, width: int
) -> tuple[torch.dtype, tuple[int, ...]]:
    metadata = schema.metadata or {}
    dtype, d_in = (
        metadata.get(key, b"")[:40].decode(errors="replace") for key in (DTYPE_KEY, D_IN_KEY)
    )
    if (
        dtype not in ITEM_BYTES
        or not re.fullmatch("[0-9]{1,12}", d_in)
        or int(d_in) * ITEM_BYTES[dtype] != width
    ):
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
    with damage_told(path, "Parquet file"):
        for batch in file.iter_batches(size, columns=[layout.activation, *layout.columns.values()]):
            yield start, batch
            start += len(batch)


def _first_width(column: pa.Array, layout: _Layout) -> int:
    if layout.shape is not None:
        return int(np.prod(layout.shape))
    lists = storage(column).flatten() if layout.grid else column
    return len(lists[0]) if len(lists) and lists[0].is_valid else 0


def _unpack(
    batch: pa.RecordBatch, unpacked: _Unpacked, layout: _Layout, path: Path, start: int
) -> None:
    """Append a batch's rows to ``unpacked``."""
    for name in batch.schema.names:
        if name != layout.columns.get("text"):
            _refuse_null(batch.column(name), f"{path}: {name}", start)
    column = batch.column(layout.activation)
    lists = storage(column)
    assert unpacked.width is not None, "known since the first batch"
    if pa.types.is_fixed_size_binary(lists.type):
        unpacked.scratch.write(_bytes(lists))
    else:
        where = f"{path}: {layout.activation}"
        if layout.grid:
            unpacked.lengths.append(pc.list_value_length(lists).to_numpy(zero_copy_only=False))
            lists = storage(lists.flatten())
        unpacked.scratch.write(_values(lists, unpacked.width, where, start))
    for name in layout.columns.values():
        other = batch.column(name)
        values = None if other.null_count else values_of(other, f"{path}: {name} from row {start}")
        unpacked.columns.setdefault(name, []).append(values)
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


def _source(request: Request, paths: list[Path], layout: _Layout, unpacked: _Unpacked) -> Source:
    path = request.path
    if not unpacked.rows or not unpacked.width:
        raise UserError(f"{path}: {layout.activation} has no rows, or empty ones")
    lengths = np.concatenate(unpacked.lengths) if layout.grid else None
    even = lengths is not None and lengths[0] > 0 and bool((lengths == lengths[0]).all())
    shape = layout.shape or (unpacked.width,)
    if even and lengths is not None:
        shape = (int(lengths[0]), unpacked.width)
    ragged = lengths is not None and not even
    source = Source(
        path, "parquet", tuple(paths),
        (as_sequences(unpacked.scratch.rows(layout.dtype, shape), str(path)),),
        tokenwise=len(shape) == 2 or ragged, activation=layout.activation,
        starts=np.cumsum([0, *lengths]) if ragged and lengths is not None else None,
    )  # fmt: skip
    named = {name: joined(parts) for name, parts in unpacked.columns.items()}
    return with_columns(source, named, request.options)
