"""Folders of cached activations that SAELens writes (``CacheActivationsRunner``).

Such a folder is a Hugging Face data set on disk: Arrow streams with a column named after the hook, one
context per row (``Array2D``, ``[tokens, d_in]``), and optionally ``token_ids``. It is read in mapped
memory, without unpacking.

Shapes: S contexts, T tokens, D d_in.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from torch import Tensor

from raysae.activations.damage import damage_told
from raysae.activations.importing.arrow import (
    is_grid,
    is_text,
    joined,
    storage,
    values_of,
)
from raysae.activations.importing.named import with_columns
from raysae.activations.importing.names import find_activation, find_columns
from raysae.activations.importing.request import Request
from raysae.activations.importing.scratch import mapped_tensor
from raysae.activations.importing.source import Source, as_sequences
from raysae.errors import UserError
from raysae.sites import ALL
from raysae.storage.files import read_json
from raysae.storage.untrusted import usable_path

STATE_FILE, INFO_FILE, SPLITS_FILE = "state.json", "dataset_info.json", "dataset_dict.json"
HOOK = re.compile(r"blocks\.(\d+)\.(?:hook_(resid_pre|resid_post|attn_out|mlp_out)$)?")


def is_dataset_folder(path: Path) -> bool:
    """Whether the folder is a data set that Hugging Face's ``save_to_disk`` wrote."""
    return any((path / name).exists() for name in (STATE_FILE, SPLITS_FILE))


def open_saelens(request: Request) -> Source:
    """Open the folder; each context is a sequence. Raises UserError, naming the file, when damaged."""
    path = request.path
    _refuse_splits(path)
    files = _data_files(path)
    tables = [_table(file) for file in files]
    name = _hook_column(path, tables[0].schema, request.options.keys)
    blocks_STD = [
        block
        for file, table in zip(files, tables, strict=True)
        for block in _blocks(file, table, name)
    ]
    if not blocks_STD:
        raise UserError(f"{path}: {name} has no rows; expected at least one")
    _refuse_mixture(path, name, blocks_STD)
    hook = HOOK.match(name)
    source = Source(
        path, "saelens", (path / STATE_FILE, *files), tuple(blocks_STD), tokenwise=True,
        activation=name, position=ALL, layer=int(hook[1]) if hook else None,
        hookpoint=hook[2] if hook else None,
    )  # fmt: skip
    return with_columns(source, _columns(files, tables, name, request), request.options)


def _refuse_splits(path: Path) -> None:
    if (path / SPLITS_FILE).exists():
        found = read_json(path / SPLITS_FILE)
        named = found.get("splits") if isinstance(found, dict) else None
        splits = ", ".join(map(str, named if isinstance(named, list) else []))
        raise UserError(f"{path}: holds several data sets ({splits}); import one: {path}/NAME")


def _data_files(path: Path) -> list[Path]:
    """The Arrow files in the data set's order."""
    state = read_json(path / STATE_FILE)
    try:
        names = [str(entry["filename"]) for entry in state["_data_files"]]
    except (KeyError, TypeError, IndexError):
        raise UserError(
            f"{path / STATE_FILE}: it does not list _data_files; damaged, or no data set of "
            "Hugging Face's save_to_disk"
        ) from None
    for name in names:
        if Path(name).name != name or not usable_path(path / name).is_file():
            raise UserError(
                f"{path / STATE_FILE}: lists {name!r}, which is not in that folder; the folder is "
                "incomplete"
            )
    if not names:
        raise UserError(f"{path}: the data set has no files, so no rows")
    return [path / name for name in names]


def _table(file: Path) -> pa.Table:
    with damage_told(file, "Arrow file"):
        table = pa.ipc.open_stream(pa.memory_map(str(file))).read_all()
        table.validate(full=True)  # Arrow itself believes the offsets of lists and texts
        return table


def _hook_column(path: Path, schema: pa.Schema, keys: Mapping[str, str]) -> str:
    possible = [column.name for column in schema if is_grid(column.type)]
    return find_activation(path, possible, {c.name: str(c.type) for c in schema}, keys)


def _blocks(file: Path, table: pa.Table, name: str) -> list[Tensor]:
    """The file's record batches as tensors ``[S, T, D]`` over the mapped file."""
    if name not in table.schema.names or not is_grid(table.schema.field(name).type):
        raise UserError(f"{file}: it has no column {name} of activations [tokens, d_in]")
    blocks, start = [], 0
    for chunk in table[name].chunks:
        if len(chunk):
            blocks.append(_grid(storage(chunk), f"{file}: {name}", start))
        start += len(chunk)
    return blocks


def _grid(column: pa.Array, where: str, start: int) -> Tensor:
    tokens = _even(column, where, start, 1)
    inner = column.flatten()
    d_in = _even(inner, where, start, tokens)
    flat = inner.flatten()
    if flat.null_count:
        raise UserError(f"{where}: nulls among the numbers (rows from {start} on)")
    values = mapped_tensor(flat.to_numpy(zero_copy_only=True))
    return as_sequences(values.view(len(column), tokens, d_in), where)


def _even(lists: pa.Array, where: str, start: int, per_row: int) -> int:
    """The common length of all lists. Raises UserError, naming the row, on nulls or unequal lengths."""
    lengths = pc.list_value_length(lists).fill_null(-1).to_numpy(zero_copy_only=False)
    other = np.flatnonzero((lengths != lengths[0]) | (lengths < 1)) if len(lengths) else [0]
    if len(other):
        raise UserError(
            f"{where}: row {start + int(other[0]) // per_row} is null, empty or of another shape "
            "than the first; expected [tokens, d_in], the same in every row"
        )
    return int(lengths[0])


def _refuse_mixture(path: Path, name: str, blocks_STD: list[Tensor]) -> None:
    kinds = {(*block.shape[1:], str(block.dtype)) for block in blocks_STD}
    if len(kinds) > 1:
        raise UserError(f"{path}: {name} has rows of several shapes or dtypes: {sorted(kinds)}")


def _columns(
    files: list[Path], tables: list[pa.Table], activation: str, request: Request
) -> dict[str, Any]:
    """The other columns that the import needs, of all files joined, by name."""
    schema = tables[0].schema
    names = [c.name for c in schema if c.name != activation and not is_grid(c.type)]
    texts = [name for name in names if is_text(schema.field(name).type)]
    columns: dict[str, Any] = {}
    for name in find_columns(names, texts, request.options.keys, request.path).values():
        parts = [
            values_of(chunk, f"{file}: {name}")
            for file, table in zip(files, tables, strict=True)
            for chunk in (table[name].chunks if name in table.schema.names else [])
            if len(chunk)
        ]
        columns[name] = joined(parts)
    return columns
