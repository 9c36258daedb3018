"""Tables of a run: Parquet files, one row a trial or a site."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from raysae.files import replacing


def read_table(path: Path) -> list[dict[str, Any]]:
    return pq.read_table(path).to_pylist()


def write_table(path: Path, rows: list[dict[str, Any]]) -> None:
    """Rows as Parquet; every row has the keys of the first that has any at each place."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    table = pa.table({name: [row.get(name) for row in rows] for name in columns})
    with replacing(path) as temporary:
        pq.write_table(table, temporary)
