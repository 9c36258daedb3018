"""The causal effects of features, where the phase ``ablation`` was run."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.parquet as pq

from raysae.records.run_files import RunFiles
from raysae.sites import Site

ABLATION = "ablation"
OTHERS = ("density", "mean_activation", "correlation", "matched_to")
"""Numbers of the ablation's table that are no effects."""


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
    """The effects that the ablation's result has of single features; none where it was not run."""
    from raysae.analysis.results import read_result, result_folder

    file = result_folder(files, ABLATION) / "features.parquet"
    if read_result(files, ABLATION) is None or not file.is_file():
        return Effects()
    return of_table(pq.read_table(file, partitioning=None))


def of_table(table: pa.Table) -> Effects:
    """The effects in a table with the columns of a site and ``feature``; its numbers that are no figures
    of the feature's own activity are effects."""
    names = tuple(
        field.name
        for field in table.schema
        if (pa.types.is_floating(field.type) or field.name == "rank") and field.name not in OTHERS
    )
    found: dict[tuple[str, int], tuple[float | None, ...]] = {}
    for row in table.to_pylist():
        site = Site.of_columns(row["layer"], row["position"], row.get("hookpoint"))
        found.setdefault((site.folder, row["feature"]), tuple(row[name] for name in names))
    return Effects(names, found)
