"""The Parquet files of a store's rows: checked as they are opened, read by split, whole or in ranges.

Shapes: N rows, D d_in.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

from raysae.activations.damage import damage_told
from raysae.activations.manifest import ShardEntry
from raysae.activations.pages import Run, activation_runs, footer_problem, uneven_columns
from raysae.activations.schema import (
    D_IN_KEY,
    DTYPE_KEY,
    ITEM_BYTES,
    Dtype,
    columns_text,
    shard_schema,
    to_arrow,
    to_torch,
    torch_dtype,
)
from raysae.activations.splits import SPLITS
from raysae.activations.store_files import StoreFile, StoreFiles
from raysae.errors import UserError

if TYPE_CHECKING:  # a worker that only passes shards on need not import torch
    from torch import Tensor

SHARD = "Parquet file"
Layout = tuple[list[int], list[list[Run]] | None]
"""The rows of each row group of a shard, and where they lie; None when they must be decoded."""


@dataclass(frozen=True)
class Segment:
    """Consecutive rows of one split: a range of bytes in a file, or a row group to be decoded."""

    shard: ShardEntry
    group: int
    rows: int
    offset: int | None
    """First byte of the rows in the file; None when the row group must be decoded."""


class ShardFiles:
    """The shards among a store's files, whose rows have ``d_in`` values of ``dtype``.

    Raises UserError, naming the file, when one is not a readable shard of this kind.
    """

    def __init__(self, files: StoreFiles, dtype: Dtype, d_in: int):
        self.files, self.dtype, self.d_in = files, dtype, d_in
        self.row_bytes = d_in * ITEM_BYTES[dtype]
        self._layouts: dict[str, Layout] = {}

    def segments(self, shard: ShardEntry, split: str) -> list[Segment]:
        """The rows of a split of a shard, in order."""
        counts, runs = self._layout(shard)
        groups = _groups_of(counts, shard, split)
        self._check_rows(shard, split, sum(counts[i] for i in groups))
        if runs is None:
            return [Segment(shard, i, counts[i], None) for i in groups]
        return [Segment(shard, i, run.rows, run.offset) for i in groups for run in runs[i]]

    def read_into(self, rows_ND: "Tensor", segment: Segment, first: int) -> None:
        """Fill ``rows_ND`` with the rows of ``segment`` that start at its row ``first``."""
        import torch

        file = self.files.file(segment.shard.file)
        with damage_told(file, SHARD):
            if segment.offset is None:
                rows_ND.copy_(self._decoded(file, segment)[first : first + len(rows_ND)])
            else:
                memory = memoryview(rows_ND.view(torch.uint8).numpy().data).cast("B")
                file.read_into(memory, segment.offset + first * self.row_bytes)

    def table(self, shard: ShardEntry, split: str, columns: list[str] | None) -> pa.Table:
        """One split of one shard as an Arrow table, of all or the named columns."""
        path = self.files.file(shard.file)
        with damage_told(path, SHARD):
            file = self._open(path)
            groups = _groups_of(_counts(file.metadata), shard, split)
            table = file.read_row_groups(groups, columns=columns)
            table.validate()
        self._check_rows(shard, split, len(table))
        return table

    def picked(self, shard: ShardEntry, split: str, index: Sequence[int]) -> pa.Table:
        """The rows of a split at ``index``, all columns; of the activations only these are read."""
        import torch

        others = shard_schema(self.dtype, self.d_in).names[1:]
        table = self.table(shard, split, others).take(pa.array(index, pa.int64()))
        rows_ND = torch.empty(len(index), self.d_in, dtype=torch_dtype(self.dtype))
        segments = self.segments(shard, split)
        starts = [0, *accumulate(segment.rows for segment in segments)]
        for at, row in enumerate(index):
            number = bisect_right(starts, row) - 1
            self.read_into(rows_ND[at : at + 1], segments[number], row - starts[number])
        return table.add_column(0, "activation", to_arrow(rows_ND))

    def _layout(self, shard: ShardEntry) -> Layout:
        """Where the rows lie in a shard. Of a store at a URI it is kept, as it takes requests to find."""
        if shard.file in self._layouts:
            return self._layouts[shard.file]
        file = self.files.file(shard.file)
        with damage_told(file, SHARD), file.told(), file.reading() as read:
            metadata = self._open(file).metadata
            runs = activation_runs(read, file.size(), metadata, self.row_bytes)
        layout = _counts(metadata), runs
        if self.files.uri is not None:
            self._layouts[shard.file] = layout
        return layout

    def _check_rows(self, shard: ShardEntry, split: str, found: int) -> None:
        expected = getattr(shard.rows, split)
        if found != expected:
            raise UserError(
                f"{self.files.file(shard.file)}: holds {found} {split} rows, the manifest has "
                f"{expected}; make the store again"
            )

    def _decoded(self, file: StoreFile, segment: Segment) -> "Tensor":
        import torch

        table = self._open(file).read_row_group(segment.group, columns=["activation"])
        table.validate()
        rows_ND = torch.cat(to_torch(table["activation"], self.dtype))
        if len(rows_ND) != segment.rows:
            raise UserError(
                f"{file}: row group {segment.group} has {len(rows_ND)} rows, its footer says "
                f"{segment.rows}; make the store again"
            )
        return rows_ND

    def _open(self, path: StoreFile) -> pq.ParquetFile:
        with damage_told(path, SHARD), path.told():
            file = path.parquet()
            self._check_schema(path, file.schema_arrow)
            problem = footer_problem(file.metadata, path.size(), self.row_bytes)
            problem = problem or uneven_columns(file.metadata)
        if problem:
            raise UserError(f"{path}: its footer claims {problem}; make the store again")
        return file

    def _check_schema(self, path: StoreFile, schema: pa.Schema) -> None:
        metadata = schema.metadata or {}
        found = tuple(
            metadata.get(key, b"?")[:40].decode(errors="replace") for key in (DTYPE_KEY, D_IN_KEY)
        )
        expected = self.dtype, str(self.d_in)
        if found != expected:
            raise UserError(
                f"{path}: holds {found[0]} rows of d_in {found[1]}; "
                f"the store is {expected[0]}, d_in {expected[1]}"
            )
        wanted = shard_schema(self.dtype, self.d_in)
        if not schema.equals(wanted):
            raise UserError(
                f"{path}: its columns are {columns_text(schema)}; expected {columns_text(wanted)}"
            )


def _counts(metadata: pq.FileMetaData) -> list[int]:
    """The rows of each row group."""
    return [metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)]


def _groups_of(counts: list[int], shard: ShardEntry, split: str) -> list[int]:
    """The row groups that hold ``split``: a shard's rows are ordered by split, group by group.

    ``counts`` are the rows of each row group.
    """
    start = sum(getattr(shard.rows, name) for name in SPLITS[: SPLITS.index(split)])
    end = start + getattr(shard.rows, split)
    groups, row = [], 0
    for number, count in enumerate(counts):
        if start <= row < end:
            groups.append(number)
        row += count
    return groups
