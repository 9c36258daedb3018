"""The trials as the charts take them: one source of data, so that a choice in one shows in all."""

import math
from collections.abc import Sequence
from functools import cached_property
from typing import Any

from bokeh.models import ColumnDataSource

from raysae.metrics import PAGE, Metric, labels, registered
from raysae.records.rows import TrialRow
from raysae.report.charts.style import plain, source_of

COST = ("seconds",)
"""Metrics that hover leaves out: the timeline has them."""


def short_name(key: str) -> str:
    """A setting's name without its section: ``d_sae`` of ``sae.d_sae``."""
    return plain(key.split(".")[-1], 24)


class TrialData:
    """Measured trials, of which there is at least one, with the settings that were searched."""

    def __init__(self, rows: Sequence[TrialRow], searched: Sequence[str], chosen: int | None):
        self.rows, self.chosen = list(rows), chosen
        self.searched = [key for key in searched if any(key in row for row in rows)]

    @cached_property
    def metrics(self) -> list[Metric]:
        """The metrics of the page's table of trials."""
        return [metric for metric in labels(PAGE, self.rows) if metric.name not in COST]

    @cached_property
    def source(self) -> ColumnDataSource:
        """A row a trial: ``row`` (its id on the page), ``trial``, ``config``, ``state``, settings
        ``s0``, ``s1``, ..., each metric, and ``t_NAME``, its text."""
        columns: dict[str, list[Any]] = {
            "row": [f"trial-{row.trial}" for row in self.rows],
            "trial": [row.trial for row in self.rows],
            "config": [plain(row.config) for row in self.rows],
            "state": [row.state for row in self.rows],
        }
        for number, key in enumerate(self.searched):
            columns[f"s{number}"] = [row.get(key) for row in self.rows]
        for metric in self.metrics:
            values = [row.get(metric.name) for row in self.rows]
            columns[metric.name] = values
            columns[f"t_{metric.name}"] = [metric.text(value) for value in values]
        for name in ("l0", "explained_variance"):
            columns[name] = self.values(name)
        return source_of(columns, "trials")

    @cached_property
    def tooltips(self) -> list[tuple[str, str]]:
        """What hover shows of a trial."""
        figures = [(metric.title, f"@{{t_{metric.name}}}") for metric in self.metrics]
        return [("trial", "@trial"), ("config", "@config"), *figures]

    @property
    def chosen_row(self) -> TrialRow | None:
        """The chosen trial."""
        return next((row for row in self.rows if row.trial == self.chosen), None)

    def values(self, name: str) -> list[float]:
        """A metric or a setting of each trial; NaN where it is missing or no number."""
        return [_number(row.get(name)) for row in self.rows]

    def varied(self) -> list[str]:
        """The searched settings that have two values or more, each a number or a word."""
        return [key for key in self.searched if len({row.get(key) for row in self.rows}) > 1]


def axis_of(metric: str) -> str:
    """How charts call a metric at an axis."""
    return registered()[metric].axis


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else math.nan
