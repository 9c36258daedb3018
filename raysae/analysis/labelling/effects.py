"""The causal effects of features, where the phase ``ablation`` was run."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.parquet as pq

from raysae.records.run_files import RunFiles

ABLATION = "ablation"


@dataclass(frozen=True)
class Effects:
    """Effects by site and feature, each a column of numbers."""

    columns: tuple[str, ...] = ()
    values: Mapping[tuple[str, int], tuple[float | None, ...]] = field(default_factory=dict)

    def beside(self, features: pa.Table) -> pa.Table:
        """The table of features with a column ``ablation_NAME`` for each effect, null where none is."""
        keys = list(zip(features["site"].to_pylist(), features["feature"].to_pylist(), strict=True))
        for number, name in enumerate(self.columns):
            found = [self.values[key][number] if key in self.values else None for key in keys]
            features = features.append_column(f"{ABLATION}_{name}", pa.array(found, pa.float64()))
        return features


def read_effects(files: RunFiles) -> Effects:
    """The effects that the ablation's result has of single features; none where it was not run.

    They are the numbers of its tables with a column ``feature`` and a column ``site``, the site's folder.
    """
    from raysae.analysis.results import read_result, result_folder

    if read_result(files, ABLATION) is None:
        return Effects()
    for file in sorted(result_folder(files, ABLATION).glob("*.parquet")):
        schema = pq.read_schema(file)
        if {"site", "feature"} <= set(schema.names):
            return _of_table(pq.read_table(file, partitioning=None))
    return Effects()


def _of_table(table: pa.Table) -> Effects:
    """The first row of each site and feature; rows without a feature (of sets) are left out."""
    names = tuple(
        field.name
        for field in table.schema
        if pa.types.is_floating(field.type) and field.name != "feature"
    )
    found: dict[tuple[str, int], tuple[float | None, ...]] = {}
    for row in table.select(["site", "feature", *names]).to_pylist():
        if row["feature"] is not None:
            found.setdefault(
                (str(row["site"]), int(row["feature"])), tuple(row[name] for name in names)
            )
    return Effects(names, found)
