"""The charts of an atlas: each metric over layers and positions, of one layer or position as a line."""

from collections.abc import Mapping, Sequence
from typing import Any

from bokeh.models import BooleanFilter, CDSView, ColumnDataSource, Range1d

from raysae.metrics import PAGE, Metric, labels
from raysae.records.rows import SiteRow
from raysae.report.atlas_rows import (
    atlas_metrics,
    is_done,
    layers_of,
    positions_of,
    value,
)
from raysae.report.charts.style import (
    AREAS,
    CHOSEN,
    LINE,
    QUIET,
    Chart,
    add_colour_bar,
    add_hover,
    add_tap,
    around,
    colours,
    names_axis,
    new_chart,
    plain,
    source_of,
)
from raysae.report.grids import Grid, bounds, inner_bounds

MOST_SITES = 6000
"""Sites of a hookpoint that are drawn one by one, at most; a larger atlas is shown as pictures."""
UNDEFINED = "#d0d5dd"
NARROW = 24
"""Positions from which on a heatmap has a line of the page to itself."""


def heatmap_charts(
    rows: Sequence[SiteRow],
    names: Mapping[int, str],
    titles: Mapping[str, str],
    files: Mapping[str, str],
    key: str,
) -> list[Chart]:
    """A chart of each metric of the rows of one hookpoint; none of a single site or of too many.

    ``names`` are the rows' ids on the page by ``id(row)``; ``titles`` are the charts' titles and
    ``files`` the stems of their pictures, by metric; ``key`` makes the charts' names unique.
    """
    layers, positions = layers_of(rows), positions_of(rows)
    if not len(layers) * len(positions) > 1 or len(rows) > MOST_SITES:
        return []
    metrics = atlas_metrics(rows)
    data = _SiteData(rows, names, layers, positions)
    about = _holes(rows)
    draw = _cells if min(len(layers), len(positions)) > 1 else _line
    return [
        Chart(
            f"atlas-{metric.name}-{key}", titles[metric.name], about,
            draw(data, metric), wide=len(positions) > NARROW, file=files[metric.name],
        )
        for metric in metrics
    ]  # fmt: skip


def _holes(rows: Sequence[SiteRow]) -> str:
    holes = sum(not is_done(row) for row in rows)
    return f"Hatched: no SAE ({holes:,} of {len(rows):,} sites)." if holes else ""


class _SiteData:
    """The rows of one hookpoint as a source that all its charts share."""

    def __init__(
        self, rows: Sequence[SiteRow], names: Mapping[int, str], layers: list[int],
        positions: list[str],
    ):  # fmt: skip
        self.rows, self.layers, self.positions = rows, layers, positions
        self.missing = [not is_done(row) for row in rows]
        down = {layer: place for place, layer in enumerate(layers)}
        across = {position: place for place, position in enumerate(positions)}
        self.columns: dict[str, list[Any]] = {
            "row": [names.get(id(row), "") for row in rows],
            "x": [across[str(row.position)] for row in rows],
            "y": [down[row.layer] for row in rows],
            "layer": [str(row.layer) for row in rows],
            "position": [plain(row.position) for row in rows],
            "state": [row.state if row.done else plain(f"{row.state}: {row.reason}", 90) for row in rows],
        }  # fmt: skip
        self.tooltips = [("layer", "@layer"), ("position", "@position"), ("state", "@state")]
        shown = {metric.name: metric for metric in [*labels(PAGE, rows), *atlas_metrics(rows)]}
        for metric in shown.values():
            self.columns[f"t_{metric.name}"] = [metric.text(row.get(metric.name)) for row in rows]
            self.tooltips.append((metric.title, f"@{{t_{metric.name}}}"))
        for metric in atlas_metrics(rows):
            self.columns[metric.name] = [value(row, metric) for row in rows]
        self.source: ColumnDataSource = source_of(self.columns, "sites")


def _cells(data: _SiteData, metric: Metric) -> Any:
    """Layers down and positions across."""
    height = min(max(130 + 24 * len(data.layers), 240), 760)
    chart = new_chart(
        "position", "layer", height, x_range=Range1d(-0.5, len(data.positions) - 0.5),
        y_range=Range1d(len(data.layers) - 0.5, -0.5),
    )  # fmt: skip
    chart.grid.visible = False
    names_axis(chart.xaxis[0], data.positions)
    names_axis(chart.yaxis[0], [str(layer) for layer in data.layers], height // 22)
    grid = Grid.of(data.rows, metric)
    low, high, logarithmic, _ = inner_bounds(grid.known, metric)
    mapper = colours(
        data.columns[metric.name], (low, high, logarithmic),
        AREAS[::-1] if metric.direction == "minimize" else AREAS,
    )  # fmt: skip
    mapper.nan_color = UNDEFINED
    side: dict[str, Any] = {
        "x": "x",
        "y": "y",
        "width": 1,
        "height": 1,
        "dilate": True,
        "source": data.source,
    }
    there = [not missing for missing in data.missing]
    cells = chart.rect(
        **side, view=CDSView(filter=BooleanFilter(there)), line_color=None,
        fill_color={"field": metric.name, "transform": mapper}, nonselection_fill_alpha=1.0,
        selection_line_color=CHOSEN, selection_line_width=3,
    )  # fmt: skip
    renderers = [cells]
    if any(data.missing):
        renderers.append(
            chart.rect(
                **side, view=CDSView(filter=BooleanFilter(data.missing)), line_color=None,
                fill_color=None, hatch_pattern="right_diagonal_line", hatch_color=CHOSEN,
                hatch_weight=1.5, nonselection_hatch_alpha=1.0,
            )
        )  # fmt: skip
    add_colour_bar(chart, mapper)
    add_hover(chart, data.tooltips, *renderers)
    add_tap(chart, *renderers)
    return chart


def _line(data: _SiteData, metric: Metric) -> Any:
    """The metric over layers, or over positions where there is one layer."""
    by_layer = len(data.positions) == 1
    names = [str(layer) for layer in data.layers] if by_layer else data.positions
    where, values = ("y" if by_layer else "x"), data.columns[metric.name]
    low, high, logarithmic = bounds(Grid.of(data.rows, metric).known, metric)
    chart = new_chart(
        "layer" if by_layer else "position", metric.axis, 280,
        y_axis_type="log" if logarithmic else "linear",
        x_range=Range1d(-0.5, len(names) - 0.5), y_range=around([low, high], logarithmic),
    )  # fmt: skip
    names_axis(chart.xaxis[0], names)
    line = sorted(zip(data.columns[where], values, strict=True))
    chart.line(*map(list, zip(*line, strict=True)), color=QUIET, line_width=1.5)
    points = chart.scatter(where, metric.name, source=data.source, size=9, color=LINE)
    if any(data.missing):
        gone = [
            place
            for place, missing in zip(data.columns[where], data.missing, strict=True)
            if missing
        ]
        chart.scatter(gone, [low] * len(gone), marker="x", size=11, color=CHOSEN, line_width=2)
    add_hover(chart, data.tooltips, points)
    add_tap(chart, points)
    return chart
