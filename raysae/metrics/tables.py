"""Records and the registry: text for people, numbers for MLflow, means over trainings."""

import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any

from raysae.metrics.registry import Metric, registered, shown

Record = Mapping[str, Any]


def figures(record: Record, place: str) -> dict[str, str]:
    """The values of a record that ``place`` shows, as text, by the metrics' titles."""
    return {
        metric.title: metric.text(record.get(metric.name))
        for metric in shown(place)
        if not metric.beside or record.get(metric.beside)
    }


def labels(place: str, records: Iterable[Record]) -> list[Metric]:
    """The metrics that ``place`` shows and at least one of the records has."""
    records = list(records)
    return [m for m in shown(place) if any(_tells(m, record) for record in records)]


def floats(record: Record, place: str) -> dict[str, float]:
    """The values of a record that ``place`` shows, as numbers, by name."""
    return {m.name: float(record[m.name]) for m in shown(place) if _tells(m, record)}


def partly(record: Record, place: str) -> dict[str, Any]:
    """The part of a record that ``place`` shows, by name."""
    return {metric.name: record[metric.name] for metric in shown(place) if metric.name in record}


def _tells(metric: Metric, record: Record) -> bool:
    """Whether a record has the metric, and it says more than another one."""
    return record.get(metric.name) is not None and bool(
        not metric.beside or record.get(metric.beside)
    )


def merged(records: Sequence[Record]) -> dict[str, Any]:
    """One record for several trainings of one config: each metric's ``mean``, or whether any is
    true.

    The registry says which. All records must have the keys of the first.
    """
    known = registered()
    found = {}
    for name in records[0]:
        values = [record[name] for record in records]
        metric = known.get(name)
        found[name] = any(values) if metric is not None and metric.merge == "any" else mean(values)
    return found


def mean(values: Sequence[Any]) -> Any:
    """The mean; the value itself when all are equal, as of counts; NaN when one is None."""
    if all(value == values[0] for value in values):
        return values[0]
    return math.nan if any(value is None for value in values) else fmean(values)
