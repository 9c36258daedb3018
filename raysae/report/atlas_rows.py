"""The rows of an atlas as plots and claims take them: by hookpoint, layer and position."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from raysae.metrics import HEATMAP, Metric, shown

Row = Mapping[str, Any]
"""A row of a table, by column."""
AnyRow = TypeVar("AnyRow", bound=Row)
PARTS = ("early", "middle", "late")
"""The thirds of the layers."""


def by_hookpoint(rows: Sequence[AnyRow]) -> dict[str | None, list[AnyRow]]:
    """The rows of each hookpoint; of one that has no name (None) in an atlas of one hookpoint."""
    found: dict[str | None, list[AnyRow]] = {}
    for row in rows:
        found.setdefault(row.get("hookpoint"), []).append(row)
    return found


def layers_of(rows: Sequence[Row]) -> list[int]:
    """The layers, from the first to the last."""
    return sorted({row["layer"] for row in rows})


def positions_of(rows: Sequence[Row]) -> list[str]:
    """The positions, as text, in the order of the text: those counted from its start, those counted
    from its end, then names."""
    return sorted({str(row["position"]) for row in rows}, key=_place)


def number(position: str) -> int | None:
    """The number of a position; None for a name such as ``all``."""
    return int(position) if position.removeprefix("-").isdecimal() else None


def is_done(row: Row) -> bool:
    """Whether the site has a usable SAE."""
    return row.get("state", "done") == "done"


def value(row: Row, metric: Metric) -> float:
    """The site's value; NaN when it has no SAE or the metric is not defined (or not finite) there."""
    found = row.get(metric.name)
    if found is None or not is_done(row) or not math.isfinite(found):
        return math.nan
    return float(found)


def atlas_metrics(rows: Sequence[Row]) -> list[Metric]:
    """The metrics that plots and claims show and at least one site has."""
    return [
        metric
        for metric in shown(HEATMAP)
        if any(not math.isnan(value(row, metric)) for row in rows)
    ]


def name_of(metric: Metric) -> str:
    """The metric's name in a sentence, such as ``explained variance``."""
    return metric.axis.split(" (")[0] or metric.title


def thirds(layers: Sequence[int]) -> dict[int, str]:
    """The third that each layer lies in, by its rank; empty with fewer than three layers."""
    if len(layers) < len(PARTS):
        return {}
    return {layer: PARTS[rank * 3 // len(layers)] for rank, layer in enumerate(layers)}


def parity(position: str) -> str | None:
    """``even`` or ``odd``; None for a name."""
    count = number(position)
    return None if count is None else ("odd" if count % 2 else "even")


def has_parity(positions: Sequence[str]) -> bool:
    """Whether odd and even can be compared: numbers of both kinds, all counted from the same end."""
    counts = [count for one in positions if (count := number(one)) is not None]
    same_end = all(count < 0 for count in counts) or all(count >= 0 for count in counts)
    return same_end and len({count % 2 for count in counts}) == 2


def _place(position: str) -> tuple[int, int, str]:
    count = number(position)
    if count is None:
        return (3 if position == "all" else 2), 0, position
    return int(count < 0), count, ""
