"""Profiles of an atlas with their spread: over layers, odd and even positions, thirds of the layers."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes

from raysae.metrics import Metric
from raysae.report.atlas_rows import (
    PARTS,
    Row,
    atlas_metrics,
    has_parity,
    layers_of,
    parity,
    positions_of,
    thirds,
    value,
)
from raysae.report.drawing import LONGEST_TICK, grid_figure, plot_text, save
from raysae.report.grids import bounds
from raysae.report.seeds import NO_SPREAD, Spread, place_of

LINE_COLOUR, PARITY_COLOURS = "#3b528b", {"even": "#1f77b4", "odd": "#ff7f0e"}
SEEDS_COLOUR = "#e4572e"
PART_COLOURS = dict(zip(PARTS, ("#440154", "#21918c", "#d8a200"), strict=True))
MOST_TICKS, UPRIGHT_FROM = 12, 4
"""Labels at an axis, at most, and the length beyond which they stand upright."""
Groups = Mapping[str, Sequence[Row]]


def has_profiles(rows: Sequence[Row]) -> bool:
    """Whether there are several layers and positions to compare, at one hookpoint."""
    return len(layers_of(rows)) > 1 and len(positions_of(rows)) > 1


def profiles(
    rows: Sequence[Row], title: str, source: str, path: Path, spread: Spread = NO_SPREAD
) -> None:
    """Draw each metric of the atlas over layers and over positions, one row of plots a metric.

    ``rows`` are the sites of one hookpoint with several layers and positions. Left: mean over positions
    at each layer, with quartiles and range. Middle: odd and even positions. Right: early, middle and late
    layers at each position. Bands of these are one standard deviation. A plot whose groups the atlas does
    not have is left out. Where sites have several seeds, bars at the left show the range over these, as
    a mean over positions.
    """
    metrics = atlas_metrics(rows)
    panels = _panels(rows, spread)
    figure, grid = grid_figure(
        (0.3 + 3.6 * len(panels), 1.4 + 2.0 * len(metrics)), (len(metrics), len(panels)),
        (0.4, 0.35 + _label_height(positions_of(rows))), title, source, sharex="col", sharey="row",
    )  # fmt: skip
    for metric, line in zip(metrics, grid, strict=True):
        for axes, (heading, label, draw) in zip(line, panels, strict=True):
            draw(axes, metric)
            if metric is metrics[0]:
                axes.set_title(heading, fontsize=9)
            if metric is metrics[-1]:
                axes.set_xlabel(label)
        line[0].set_ylabel(metric.axis.replace(" (", "\n("), fontsize=8)
        _set_range(line[0], rows, metric, spread)
    figure.align_ylabels(grid[:, 0])
    for axes in grid[0, 1:]:
        axes.legend(frameon=False, fontsize=7, ncols=3)
    save(figure, path)


def _set_range(axes: Axes, rows: Sequence[Row], metric: Metric, spread: Spread) -> None:
    """Show the range of the values, on the scale that a heatmap of them would have."""
    ends = [_over_seeds(rows, metric, layer, spread) for layer in layers_of(rows)]
    values = np.array(
        [*(value(row, metric) for row in rows), *(end for both in ends for end in both)]
    )
    values = values[~np.isnan(values)]
    low, high, logarithmic = bounds(values, metric)
    if logarithmic:
        axes.set_yscale("log")
        axes.set_ylim(low / 1.2, high * 1.2)
    else:
        margin = 0.05 * (high - low)
        axes.yaxis.set_major_locator(matplotlib.ticker.MaxNLocator(5))
        axes.set_ylim(low - margin, high + margin)


Panel = tuple[str, str, Callable[[Axes, Metric], None]]


def _panels(rows: Sequence[Row], spread: Spread) -> list[Panel]:
    """The columns of plots that this atlas has: heading, name of the axis, and how to draw a metric."""
    layers, positions = layers_of(rows), positions_of(rows)
    found: list[Panel] = [
        (
            "Over layers: mean, quartiles and range\nover positions"
            + ("; bars: range over seeds" if spread else ""),
            "layer",
            lambda axes, metric: _spread(axes, rows, metric, layers, spread),
        )
    ]
    if has_parity(positions):
        groups = _grouped(rows, lambda row: parity(str(row["position"])), PARITY_COLOURS)
        found.append(
            (
                "Odd and even positions:\nmean ± sd over them",
                "layer",
                lambda axes, metric: _lines(axes, groups, metric, "layer", layers, PARITY_COLOURS),
            )
        )
    if part_of := thirds(layers):
        parts = _grouped(rows, lambda row: part_of[row["layer"]], PART_COLOURS)
        found.append(
            (
                "Early, middle and late layers:\nmean ± sd over them",
                "position",
                lambda axes, metric: _lines(
                    axes, parts, metric, "position", positions, PART_COLOURS
                ),
            )
        )
    return found


def _grouped(
    rows: Sequence[Row], name_of: Callable[[Row], str | None], names: Mapping[str, str]
) -> Groups:
    return {name: [row for row in rows if name_of(row) == name] for name in names}


def _spread(
    axes: Axes, rows: Sequence[Row], metric: Metric, layers: Sequence[int], spread: Spread
) -> None:
    """Draw the mean over positions at each layer, with quartiles and range, and the mean range over
    seeds."""
    by_layer = _by_place(rows, metric, "layer", layers)
    marks = [_summary(values, lambda v: np.percentile(v, [0, 25, 75, 100])) for values in by_layer]
    low, first, third, high = np.array(marks).T
    means = [_summary(values, lambda v: [v.mean()])[0] for values in by_layer]
    axes.fill_between(range(len(layers)), low, high, color=LINE_COLOUR, alpha=0.12, linewidth=0)
    axes.fill_between(range(len(layers)), first, third, color=LINE_COLOUR, alpha=0.3, linewidth=0)
    axes.plot(range(len(layers)), means, color=LINE_COLOUR, **_marker(layers))
    ends = [_over_seeds(rows, metric, layer, spread) for layer in layers]
    axes.vlines(range(len(layers)), *np.array(ends).T, color=SEEDS_COLOUR, linewidth=2, zorder=3)
    _label(axes, [str(layer) for layer in layers])


def _over_seeds(
    rows: Sequence[Row], metric: Metric, layer: int, spread: Spread
) -> Sequence[float] | np.ndarray:
    """The least and the largest value over seeds, means over the positions of the layer; else NaN."""
    there = [spread.get(place_of(row), {}) for row in rows if row["layer"] == layer]
    known = [ranges[metric.name] for ranges in there if metric.name in ranges]
    return np.array(known).mean(axis=0) if known else [np.nan, np.nan]


def _lines(
    axes: Axes, groups: Groups, metric: Metric, key: str, places: Sequence[object],
    colours: Mapping[str, str],
) -> None:  # fmt: skip
    """Draw a line a group over layers or positions, with a band of one standard deviation."""
    for name, rows in groups.items():
        values = _by_place(rows, metric, key, places)
        mean = np.array([_summary(v, lambda v: [v.mean()])[0] for v in values])
        sd = np.array(
            [_summary(v, lambda v: [v.std(ddof=1) if len(v) > 1 else 0])[0] for v in values]
        )
        at = np.arange(len(places))
        axes.plot(at, mean, color=colours[name], label=name, **_marker(places))
        axes.fill_between(at, mean - sd, mean + sd, color=colours[name], alpha=0.15, linewidth=0)
    _label(axes, [plot_text(str(place), LONGEST_TICK) for place in places])


def _by_place(
    rows: Sequence[Row], metric: Metric, key: str, places: Sequence[object]
) -> list[np.ndarray]:
    """The values that are there, at each of ``places`` of the column ``key``."""
    found: dict[str, list[float]] = {str(place): [] for place in places}
    for row in rows:
        found[str(row[key])].append(value(row, metric))
    arrays = [np.array(values) for values in found.values()]
    return [values[~np.isnan(values)] for values in arrays]


def _summary(
    values: np.ndarray, of: Callable[[np.ndarray], Sequence[float] | np.ndarray]
) -> Sequence[float] | np.ndarray:
    """``of(values)``; four times NaN when there are none."""
    return of(values) if len(values) else [np.nan] * 4


def _label_height(names: Sequence[str]) -> float:
    """The height of the labels of positions, in inches."""
    longest = min(max(map(len, names)), LONGEST_TICK)
    return 0.055 * longest if longest > UPRIGHT_FROM else 0.1


def _marker(places: Sequence[object]) -> dict[str, Any]:
    return {"marker": "."} if len(places) <= 60 else {}


def _label(axes: Axes, names: Sequence[str]) -> None:
    """Label some of the places at the axis, and turn labels that are long."""
    step = -(-len(names) // MOST_TICKS)
    upright = max(map(len, names)) > UPRIGHT_FROM
    axes.set_xticks(range(0, len(names), step), list(names[::step]))
    axes.tick_params(axis="x", labelsize=7, labelrotation=90 if upright else 0)
