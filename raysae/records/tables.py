"""Tables of a run: Parquet files, one row a trial or a site."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from raysae.records.rows import SiteRow, TrialRow
from raysae.storage.files import replacing


def read_table(path: Path) -> list[dict[str, Any]]:
    """The rows of a table, by column."""
    return pq.read_table(path).to_pylist()


def read_trials(path: Path) -> list[TrialRow]:
    """The rows of ``trials.parquet``."""
    return [TrialRow.of_columns(columns) for columns in read_table(path)]


def read_sites(path: Path) -> list[SiteRow]:
    """The rows of ``atlas/metrics.parquet``; none where there is no such table."""
    return [SiteRow.of_columns(row) for row in read_table(path)] if path.exists() else []


def write_table(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Rows as Parquet; columns come in the order in which the rows have them."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    table = pa.table({name: [row.get(name) for row in rows] for name in columns})
    with replacing(path) as temporary:
        pq.write_table(table, temporary)
