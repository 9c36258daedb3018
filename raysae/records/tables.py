"""Tables of a run: Parquet files, one row a trial or a site."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from raysae.records.rows import SiteRow, TrialRow
from raysae.storage.files import replacing


def read_table(path: Path) -> list[dict[str, Any]]:
    """The rows of a Parquet file, each a dict by column. Raises OSError when it cannot be read."""
    # a "=" in the name of a folder above is no column
    return pq.read_table(path, partitioning=None).to_pylist()


def read_trials(path: Path) -> list[TrialRow]:
    """The rows of ``trials.parquet``. Raises OSError when it cannot be read."""
    return [TrialRow.of_columns(columns) for columns in read_table(path)]


def read_sites(path: Path) -> list[SiteRow]:
    """The rows of ``atlas/metrics.parquet``; empty when the file does not exist."""
    return [SiteRow.of_columns(row) for row in read_table(path)] if path.exists() else []


def write_table(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows as Parquet; the columns are in the order in which they first appear in the rows."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    table = pa.table({name: [row.get(name) for row in rows] for name in columns})
    with replacing(path) as temporary:
        pq.write_table(table, temporary)
