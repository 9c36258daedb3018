"""Tables of a run: Parquet files, one row a trial or a site."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from raysae.files import replacing
from raysae.sae.config import CONFIGS, DEFAULT_VARIANT

SPARSITY_LABELS = {"k": "K", "l0_coefficient": "L0 coefficient", "l1_coefficient": "L1 coefficient"}
"""What sets how sparse a variant's features are, and how people call it."""


def read_table(path: Path) -> list[dict[str, Any]]:
    return pq.read_table(path).to_pylist()


def write_table(path: Path, rows: list[dict[str, Any]]) -> None:
    """Rows as Parquet; every row has the keys of the first that has any at each place."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    table = pa.table({name: [row.get(name) for row in rows] for name in columns})
    with replacing(path) as temporary:
        pq.write_table(table, temporary)


def sparsity_of(row: dict[str, Any]) -> tuple[str, Any]:
    """What sets the sparsity of a trial's variant, such as ``("K", 32)``."""
    key = CONFIGS[row["sae.variant"]].sparsity_key
    return SPARSITY_LABELS.get(key, key), row[f"sae.{key}"]


def config_of(row: dict[str, Any]) -> str:
    """A trial's config in words, such as ``d_sae 256, K 8``; with the variant, unless it is TopK."""
    label, value = sparsity_of(row)
    variant = "" if row["sae.variant"] == DEFAULT_VARIANT else f"{row['sae.variant']}, "
    return f"{variant}d_sae {row['sae.d_sae']}, {label} {value:g}"
