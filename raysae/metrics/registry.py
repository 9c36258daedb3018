"""The registry of metrics: one entry for each, which lists the places that show it.

It imports the standard library only, so that every part of the package can read it.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

CONSOLE, PROGRESS, LOG, MLFLOW = "console", "progress", "log", "mlflow"
TABLE, CANDIDATES, MODELS, PAGE = "table", "candidates", "models", "page"
HEATMAP = "heatmap"
PLACES = (CONSOLE, PROGRESS, LOG, MLFLOW, TABLE, CANDIDATES, MODELS, PAGE, HEATMAP)
"""Where metrics are shown. Console: all text about a trained SAE. Progress: text about a running
training. Log: JSON lines. MLflow: its runs. Table: the Parquet tables. Candidates:
``selection.json``. Models: the table that compares models. Page: the report's table. Heatmap: a
plot over the atlas."""
Merge = Literal["mean", "any", "none"]


@dataclass(frozen=True)
class Metric:
    """One metric: its definition, and how and where it is shown."""

    name: str
    meaning: str
    """Its definition, without a verb; the help and the reference of metrics show it."""
    unit: str = ""
    direction: Literal["maximize", "minimize"] | None = None
    """Whether larger or smaller values are better; None: neither."""
    range: tuple[float, float] = (-math.inf, math.inf)
    shown: frozenset[str] = frozenset({TABLE})
    objective: bool = False
    """Whether a search can optimise or bound it."""
    in_model: bool = False
    """Whether it is measured with the SAE in the model: at the end of a trial, where a search asks for
    it."""
    label: str = ""
    """Its short name on console and page; empty: ``name``."""
    form: str | Callable[[Any], str] = "{}"
    """How console and page format its value: a format string or a function."""
    axis: str = ""
    """How plots call it, on an axis or as a title."""
    cell: str = "{:.3f}"
    """How a heatmap writes it."""
    merge: Merge = "mean"
    """How a trial with several seeds or sites combines its values: their mean, whether any is true,
    or not at all, because the trial itself computes it."""
    volatile: bool = False
    """Whether it differs between two runs of the same recipe, as times do."""
    beside: str = ""
    """Another metric: where that is 0 in all records, this one is not shown; empty: always shown."""
    cost: bool = False
    """Whether it describes the cost of training an SAE, not the SAE itself."""

    @property
    def title(self) -> str:
        """Its name in texts for people."""
        return self.label or self.name

    @property
    def prometheus_name(self) -> str:
        """Its name in Prometheus, which allows letters, digits and underscores."""
        return f"raysae_{self.name}"

    def text(self, value: Any) -> str:
        """The value as text; empty when it is None or NaN."""
        if value is None or (isinstance(value, float) and math.isnan(value)):
            return ""
        return self.form(value) if callable(self.form) else self.form.format(value)


_metrics: dict[str, Metric] = {}


def register(metric: Metric) -> Metric:
    """Add a metric after the others; returns it.

    Raises ValueError when its name is registered already or one of its places is unknown.
    """
    if metric.name in _metrics:
        raise ValueError(f"metric {metric.name!r} is registered already")
    if unknown := metric.shown - set(PLACES):
        raise ValueError(f"metric {metric.name!r} is shown at {sorted(unknown)}; known: {PLACES}")
    _metrics[metric.name] = metric
    return metric


def unregister(name: str) -> None:
    """Remove a metric, as tests do. Raises KeyError when there is none of that name."""
    del _metrics[name]


def registered() -> dict[str, Metric]:
    """All metrics by name, in the order of registration."""
    return dict(_metrics)


def shown(place: str) -> list[Metric]:
    """The metrics that ``place`` shows, in the order of registration."""
    return [metric for metric in _metrics.values() if place in metric.shown]


def objectives() -> list[str]:
    """The names of the metrics that a search can optimise or bound."""
    return [metric.name for metric in _metrics.values() if metric.objective]


def measured_in_model() -> frozenset[str]:
    """The names of the metrics that are measured with the SAE in the model."""
    return frozenset(metric.name for metric in _metrics.values() if metric.in_model)


def volatile() -> tuple[str, ...]:
    """The columns that differ between two runs of one recipe; on CPU all others are equal."""
    return tuple(metric.name for metric in _metrics.values() if metric.volatile)
