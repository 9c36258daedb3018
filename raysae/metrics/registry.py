"""The registry: one entry a metric. What is added here appears everywhere that it says it is shown.

Standard library alone: what trains, records, plots and asks for metrics reads it.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

CONSOLE, PROGRESS, LOG, MLFLOW = "console", "progress", "log", "mlflow"
TABLE, CANDIDATES, MODELS, PAGE = "table", "candidates", "models", "page"
PLACES = (CONSOLE, PROGRESS, LOG, MLFLOW, TABLE, CANDIDATES, MODELS, PAGE)
"""Console: every view of an SAE. Progress: of a running one. Log: JSON lines. Table: the Parquet tables.
Candidates: ``selection.json``. Models: the table that compares models. Page: the report."""

EVERYWHERE = frozenset(PLACES) - {PROGRESS, MODELS}
Merge = Literal["mean", "any", "none"]


@dataclass(frozen=True)
class Metric:
    """One metric: what it is, and where it is shown."""

    name: str
    meaning: str
    """Its definition, as a clause; the help and the README print it."""
    unit: str = ""
    direction: Literal["maximize", "minimize"] | None = None
    """Which way is better."""
    range: tuple[float, float] = (-math.inf, math.inf)
    shown: frozenset[str] = frozenset({TABLE})
    objective: bool = False
    """Whether a search may optimise it, or bound it."""
    label: str = ""
    """How console and page call it; the name without a label."""
    form: str | Callable[[Any], str] = "{}"
    """How console and page write it."""
    merge: Merge = "mean"
    """What a trial of several seeds or sites shows of it: the mean, whether any has it; none: the trial
    works it out."""
    volatile: bool = False
    """Whether it differs between two runs of one recipe, such as a time."""
    cost: bool = False
    """Whether it tells what an SAE cost, beside what it is."""

    @property
    def title(self) -> str:
        """How people call it."""
        return self.label or self.name

    @property
    def prometheus_name(self) -> str:
        """Its name in Prometheus, which takes letters, digits and underscores."""
        return f"raysae_{self.name}"

    def text(self, value: Any) -> str:
        """The value for people; empty where there is none."""
        if value is None or (isinstance(value, float) and math.isnan(value)):
            return ""
        return self.form(value) if callable(self.form) else self.form.format(value)


_metrics: dict[str, Metric] = {}


def register(metric: Metric) -> Metric:
    """Add a metric, after those that are there. Raises ValueError on a second one of its name, or an
    unknown place."""
    if metric.name in _metrics:
        raise ValueError(f"metric {metric.name!r} is registered already")
    if unknown := metric.shown - set(PLACES):
        raise ValueError(f"metric {metric.name!r} is shown at {sorted(unknown)}; known: {PLACES}")
    _metrics[metric.name] = metric
    return metric


def unregister(name: str) -> None:
    """Take a metric out again, as tests do."""
    del _metrics[name]


def registered() -> dict[str, Metric]:
    """All metrics by name, in their order."""
    return dict(_metrics)


def shown(place: str) -> list[Metric]:
    """The metrics that are shown at a place, in their order."""
    return [metric for metric in _metrics.values() if place in metric.shown]


def objectives() -> list[str]:
    """The names of the metrics that a search may optimise or bound."""
    return [metric.name for metric in _metrics.values() if metric.objective]


def volatile() -> tuple[str, ...]:
    """The columns that differ between two runs of one recipe; all others are equal to the bit on CPU."""
    return tuple(metric.name for metric in _metrics.values() if metric.volatile)
