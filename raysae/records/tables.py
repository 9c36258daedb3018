"""Tables of a run: Parquet files, one row a trial or a site."""

import csv
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from raysae.errors import UserError
from raysae.records.rows import Row, SiteRow, TrialRow
from raysae.storage.files import replacing

SomeRow = TypeVar("SomeRow", bound=Row)


def read_table(path: Path) -> list[dict[str, Any]]:
    """The rows of a Parquet file, each a dict by column.

    Raises UserError when it is missing or damaged, OSError when it cannot be read.
    """
    if not path.is_file():
        raise UserError(f"{path}: not found; the file was removed")
    try:
        # a "=" in the name of a folder above is no column
        return pq.read_table(path, partitioning=None).to_pylist()
    except PermissionError:
        raise
    except (pa.ArrowException, OSError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"{path}: not a readable table ({reason}); the file was damaged or altered"
        ) from None


def read_trials(path: Path) -> list[TrialRow]:
    """The rows of ``trials.parquet``. Raises UserError when it is not such a table."""
    return _rows(path, TrialRow.of_columns, {"trial": int, "state": str, "sae.variant": str})


def read_sites(path: Path) -> list[SiteRow]:
    """The rows of ``atlas/metrics.parquet``; empty when the file does not exist.

    Raises UserError when it is not such a table.
    """
    if not path.exists():
        return []
    return _rows(path, SiteRow.of_columns, {"layer": int, "position": str, "state": str})


def _rows(
    path: Path, of_columns: Callable[[Mapping[str, Any]], SomeRow], kinds: Mapping[str, type]
) -> list[SomeRow]:
    """The rows as types. Raises UserError when a column of ``kinds`` is missing or of another kind."""
    found = read_table(path)
    for row in found:
        for name, kind in kinds.items():
            if not isinstance(row.get(name), kind):
                raise UserError(
                    f"{path}: column {name} is missing or of another kind; the file was damaged or "
                    "altered"
                )
    return [of_columns(row) for row in found]


def write_table(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows as Parquet; the columns are in the order in which they first appear in the rows."""
    table = pa.table({name: [row.get(name) for row in rows] for name in _columns(rows)})
    with replacing(path) as temporary:
        pq.write_table(table, temporary)


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows as CSV with the columns of ``write_table``; what a row lacks is empty, never a zero."""
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns := _columns(rows))
        writer.writerows([_cell(row.get(name)) for name in columns] for row in rows)


def _columns(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(key for row in rows for key in row))


def _cell(value: Any) -> Any:
    """A value as text that pandas, R and spreadsheets read as what it is; numbers lose no digit."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple | dict):
        return json.dumps(value)
    return "" if isinstance(value, float) and math.isnan(value) else value
