"""Heatmaps of an atlas, of bounded size: layers down, positions across, sites without SAE hatched."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.collections import PatchCollection
from matplotlib.colors import Colormap, ListedColormap, LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Patch, Rectangle

from raysae.metrics import Metric
from raysae.report.atlas_rows import Row
from raysae.report.drawing import (
    CHOICE_COLOUR,
    COLOURS,
    DPI,
    HATCHING,
    LONGEST_TICK,
    new_figure,
    plot_text,
    save,
)
from raysae.report.grids import Grid, bounds

UNDEFINED_COLOUR = "#d0d5dd"
MOST_TEXTS = 400
"""Cells with their value written in them, at most."""
HATCHED_FROM = 12
"""Pixels of a side of a cell from which on hatching can be seen; smaller cells are filled."""
CHARACTER, LINE, TITLE_CHARACTER = 0.062, 0.14, 0.085
"""Width of a character and height of a line at the axes, and width of a title's character, in inches."""
OUTLYING = 4
"""A scale ends at the 1st and 99th percentile when the whole range is this many times as wide."""


def heatmap(rows: Sequence[Row], metric: Metric, title: str, source: str, path: Path) -> None:
    """Draw a metric over layers (down) and positions (across); of one layer or one position a line.

    ``rows`` are the sites of one hookpoint. Bright is better; the metric says which way that is, and how
    values are written. Values are written where they fit. A site without SAE is hatched, one without
    value is grey. ``source`` is the line at the foot.
    """
    grid = Grid.of(rows, metric)
    if min(grid.values.shape) == 1:
        _draw_line(grid, metric, title, source, path)
    else:
        _draw_cells(grid, metric, title, source, path)


def _draw_cells(grid: Grid, metric: Metric, title: str, source: str, path: Path) -> None:
    cells = grid.cells()
    layers, positions = cells.values.shape
    wide, high = (0.5, 0.3) if cells.values.size <= MOST_TEXTS else (0.22, 0.16)
    size = max(5.0, 2.6 + wide * positions), max(3.0, 2.0 + high * layers)
    figure, axes = new_figure(*size, source)
    axes.grid(visible=False)
    colours = _colours(metric)
    norm, beyond = _scale(grid.known, metric)
    image = axes.imshow(cells.values, cmap=colours, norm=norm, aspect="auto", interpolation="none")
    axes.set(xlabel=_label("position", grid.joined[1]), ylabel=_label("layer", grid.joined[0]))
    axes.set_title(_wrapped(title, size[0]))
    form = metric.cell.replace("{:", "{x:")
    figure.colorbar(image, ax=axes, format=form, extend=beyond, aspect=30)
    across, down = _cell_size(figure, cells, _label_ticks(figure, axes, cells))
    marks = _mark_holes(axes, cells, hatched=min(across, down) * DPI >= HATCHED_FROM)
    _explain(axes, grid, marks)
    _write_values(axes, cells, image, metric.cell, across, down)
    save(figure, path)


def _draw_line(grid: Grid, metric: Metric, title: str, source: str, path: Path) -> None:
    """Draw the metric over layers, or over positions when there is one layer."""
    by_layer = len(grid.positions) == 1
    names = [str(layer) for layer in grid.layers] if by_layer else grid.positions
    places, values = np.arange(len(names)), grid.values.ravel()
    figure, axes = new_figure(max(6.4, 2 + 0.12 * len(names)), 3.6, source)
    axes.plot(places, values, marker="." if len(names) <= 100 else "", color="#3b528b", zorder=3)
    low, high, logarithmic = bounds(grid.known, metric)
    if logarithmic:
        axes.set_yscale("log")
    else:
        axes.set_ylim(low - 0.05 * (high - low), high + 0.05 * (high - low))
    for place in np.flatnonzero(grid.missing.ravel()):
        axes.axvspan(place - 0.5, place + 0.5, **HATCHING)
    axes.set_xlim(-0.5, len(names) - 0.5)
    axes.set(xlabel="layer" if by_layer else "position", ylabel=plot_text(metric.axis))
    fixed = f"position {grid.positions[0]}" if by_layer else f"layer {grid.layers[0]}"
    axes.set_title(plot_text(f"{title}, {fixed}"))
    longest = max(len(name) for name in names)
    _thin(axes.xaxis, names, figure.get_figwidth() - 1, max(longest, 2) * CHARACTER + 0.06)
    _explain(axes, grid, {"missing": Patch(**HATCHING)} if grid.missing.any() else {})
    save(figure, path)


def _wrapped(title: str, width: float) -> str:
    """The title in two lines, broken before its bracket, where it is too long for the width in inches."""
    head, bracket, tail = plot_text(title).partition(" (")
    wide = len(title) * TITLE_CHARACTER > width - 1
    return f"{head}\n({tail}" if bracket and wide else f"{head}{bracket}{tail}"


def _colours(metric: Metric) -> Colormap:
    """Bright is better, and a cell without value is grey."""
    name = f"{COLOURS}_r" if metric.direction == "minimize" else COLOURS
    return plt.get_cmap(name).with_extremes(bad=UNDEFINED_COLOUR)


def _scale(values: np.ndarray, metric: Metric) -> tuple[Normalize, str]:
    """The scale of colours, and at which ends values lie beyond it (``neither``, ``min``, ...)."""
    low, high, logarithmic = bounds(values, metric)
    if logarithmic:
        return LogNorm(low, high), "neither"
    if len(values) < 50 or low < values.min():  # a scale that is wider than the values already
        return Normalize(low, high), "neither"
    inner = np.percentile(values, [1, 99])
    if high - low < OUTLYING * (inner[1] - inner[0]) or inner[0] == inner[1]:
        return Normalize(low, high), "neither"
    ends = bool(low < inner[0]), bool(high > inner[1])
    beyond = {(True, True): "both", (True, False): "min", (False, True): "max"}[ends]
    return Normalize(*inner), beyond


def _label(name: str, joined: int) -> str:
    return name if joined == 1 else f"{name} (a cell is the mean over {joined} of them)"


def _label_ticks(figure: Figure, axes: Axes, cells: Grid) -> float:
    """Label as many layers and positions as there is room for; the height of the labels in inches."""
    width, height = figure.get_size_inches()
    _thin(axes.yaxis, [str(layer) for layer in cells.layers], height - 1.2, LINE + 0.04)
    names = [plot_text(position, LONGEST_TICK) for position in cells.positions]
    longest = max(map(len, names)) * CHARACTER + 0.06
    upright = longest > 0.45 and longest * len(names) > width - 2
    _thin(axes.xaxis, names, width - 2, LINE if upright else longest)
    if upright:
        axes.tick_params(axis="x", labelrotation=90)
    return longest if upright else LINE


def _thin(axis: Axis, names: Sequence[str], room: float, needed: float) -> None:
    """Label every n-th place, n as 1, 2, 5, 10, ...; ``room`` and ``needed`` (for one) in inches."""
    most = max(room / needed, 2)
    steps = (digit * 10**power for power in range(9) for digit in (1, 2, 5))
    step = next(step for step in steps if len(names) / step <= most)
    axis.set_ticks(range(0, len(names), step), list(names[::step]))


def _cell_size(figure: Figure, cells: Grid, labels: float) -> tuple[float, float]:
    """About the width and height of a cell in inches, under which labels of this height stand.

    An estimate, because laying out the figure to measure it takes as long as drawing it.
    """
    width, height = figure.get_size_inches()
    layers, positions = cells.values.shape
    return (width - 1.7) / positions, (height - 1.0 - labels) / layers


def _mark_holes(axes: Axes, cells: Grid, hatched: bool) -> dict[str, Patch]:
    """Mark the cells without SAE and those without value; what the marks look like, by kind."""
    marks = {}
    if cells.missing.any():
        look: dict[str, Any] = HATCHING if hatched else {"facecolor": CHOICE_COLOUR}
        marks["missing"] = Patch(**look)
        if hatched:
            places = [Rectangle((x - 0.5, y - 0.5), 1, 1) for y, x in np.argwhere(cells.missing)]
            axes.add_collection(PatchCollection(places, **look))
        else:
            holes = np.where(cells.missing, 1.0, np.nan)
            only = ListedColormap([CHOICE_COLOUR])
            axes.imshow(holes, cmap=only, vmin=0, vmax=1, aspect="auto", interpolation="none")
    if cells.undefined.any():
        marks["undefined"] = Patch(facecolor=UNDEFINED_COLOUR)
    return marks


def _explain(axes: Axes, grid: Grid, marks: dict[str, Patch]) -> None:
    """Name the marks, with the number of sites that each stands for, under the plot."""
    counts = {"missing": int(grid.missing.sum()), "undefined": int(grid.undefined.sum())}
    names = {"missing": "no SAE", "undefined": "no value"}
    labels = [f"{names[kind]}: {counts[kind]:,} of {grid.values.size:,} sites" for kind in marks]
    if marks:
        axes.figure.legend(
            list(marks.values()), labels, loc="outside upper right", frameon=False, fontsize=8,
            ncols=2,
        )  # fmt: skip


def _write_values(
    axes: Axes, cells: Grid, image: AxesImage, form: str, across: float, down: float
) -> None:
    """Write the values, in white where a cell is dark, if they fit cells of this size in inches."""
    known = ~np.isnan(cells.values)
    texts = {(int(y), int(x)): form.format(cells.values[y, x]) for y, x in np.argwhere(known)}
    longest = max(map(len, texts.values()), default=0)
    size = next((s for s in (7, 5.5) if longest * s * 0.0095 < across and s * 0.0185 < down), None)
    if size is None or len(texts) > MOST_TEXTS:
        return
    colours = np.asarray(image.cmap(image.norm(cells.values)))
    for (row, column), text in texts.items():
        red, green, blue, _ = colours[row, column]
        dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.5
        colour = "white" if dark else "black"
        axes.text(column, row, text, ha="center", va="center", fontsize=size, color=colour)
