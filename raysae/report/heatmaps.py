"""Heatmaps of an atlas, of bounded size: layers down, positions across, sites without SAE hatched."""

from collections.abc import Iterable, Mapping, Sequence
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
from raysae.report.grids import Grid, bounds, inner_bounds
from raysae.report.seeds import NO_SPREAD, Place, Spread

UNDEFINED_COLOUR = "#d0d5dd"
MOST_TEXTS = 400
"""Cells with their value written in them, at most."""
HATCHED_FROM = 12
"""Pixels of a side of a cell from which on hatching can be seen; smaller cells are filled."""
CHARACTER, LINE, TITLE_CHARACTER = 0.062, 0.14, 0.085
"""Width of a character and height of a line at the axes, and width of a title's character, in inches."""
Ranges = Mapping[Place, tuple[float, float]]
"""The range of a metric over the seeds, by layer and position."""


def heatmap(
    rows: Sequence[Row], metric: Metric, title: str, source: str, path: Path,
    spread: Spread = NO_SPREAD,
) -> None:  # fmt: skip
    """Draw a metric over layers (down) and positions (across); of one layer or one position a line.

    ``rows`` are the sites of one hookpoint. Bright is better; the metric says which way that is, and how
    values are written. Values are written where they fit. A site without SAE is hatched, one without
    value is grey. ``source`` is the line at the foot. ``spread`` is that over the seeds of a site: a band
    beside a line, and half of it in small under a value.
    """
    grid, known = Grid.of(rows, metric), _spread_of(metric, spread)
    if min(grid.values.shape) == 1:
        _draw_line(grid, metric, title, source, path, known)
    else:
        _draw_cells(grid, metric, title, source, path, known)


def _spread_of(metric: Metric, spread: Spread) -> Ranges:
    return {place: ranges[metric.name] for place, ranges in spread.items() if metric.name in ranges}


def _draw_cells(
    grid: Grid, metric: Metric, title: str, source: str, path: Path, spread: Ranges
) -> None:
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
    if max(grid.joined) > 1:
        spread = {}
    if _write_values(axes, cells, image, metric.cell, across, down, spread):
        axes.set_xlabel(f"{axes.get_xlabel()}; ±: half the range over the seeds")
    save(figure, path)


def _draw_line(
    grid: Grid, metric: Metric, title: str, source: str, path: Path, spread: Ranges
) -> None:
    """Draw the metric over layers, or over positions when there is one layer."""
    by_layer = len(grid.positions) == 1
    names = [str(layer) for layer in grid.layers] if by_layer else grid.positions
    places, values = np.arange(len(names)), grid.values.ravel()
    figure, axes = new_figure(max(6.4, 2 + 0.12 * len(names)), 3.6, source)
    axes.plot(places, values, marker="." if len(names) <= 100 else "", color="#3b528b", zorder=3)
    if spread:
        _draw_band(axes, grid, spread)
    ends = [end for both in spread.values() for end in both]
    low, high, logarithmic = bounds(np.array([*grid.known, *ends]), metric)
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


def _draw_band(axes: Axes, grid: Grid, spread: Ranges) -> None:
    """Draw the range over the seeds at each place of a line."""
    places = [(layer, position) for layer in grid.layers for position in grid.positions]
    ends = np.array([spread.get(place, (np.nan, np.nan)) for place in places])
    label = "range over the seeds"
    axes.vlines(range(len(places)), *ends.T, color="#3b528b", alpha=0.5, linewidth=1)
    axes.fill_between(
        range(len(places)), *ends.T, color="#3b528b", alpha=0.2, linewidth=0, label=label
    )
    axes.legend(frameon=False, fontsize=8, loc="best")


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
    low, high, logarithmic, beyond = inner_bounds(values, metric)
    return LogNorm(low, high) if logarithmic else Normalize(low, high), beyond


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
    axes: Axes, cells: Grid, image: AxesImage, form: str, across: float, down: float, spread: Ranges
) -> bool:
    """Write the values, in white where a cell is dark, if they fit cells of this size in inches.

    Half the range over the seeds stands under them if that fits, too; returns whether it does.
    """
    known = ~np.isnan(cells.values)
    places = [(int(y), int(x)) for y, x in np.argwhere(known)]
    texts = {place: form.format(cells.values[place]) for place in places}
    both = {
        (y, x): f"{text}\n{_half(spread.get((cells.layers[y], cells.positions[x])), form)}"
        for (y, x), text in texts.items()
    }
    for written in (both, texts) if spread else (texts,):
        size = _text_size(written.values(), across, down)
        if size is not None and len(written) <= MOST_TEXTS:
            _write(axes, image, cells, written, size)
            return written is both
    return False


def _text_size(texts: Iterable[str], across: float, down: float) -> float | None:
    """The size of letters in which all texts fit a cell; None if there is none."""
    lines = [text.split("\n") for text in texts]
    longest = max((len(line) for text in lines for line in text), default=0)
    most = max(map(len, lines), default=1)
    sizes = (s for s in (7, 5.5) if longest * s * 0.0095 < across and most * s * 0.0185 < down)
    return next(sizes, None)


def _write(
    axes: Axes, image: AxesImage, cells: Grid, texts: Mapping[tuple[int, int], str], size: float
) -> None:
    colours = np.asarray(image.cmap(image.norm(cells.values)))
    for (row, column), text in texts.items():
        red, green, blue, _ = colours[row, column]
        dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.5
        colour = "white" if dark else "black"
        axes.text(column, row, text, ha="center", va="center", fontsize=size, color=colour)


def _half(ends: tuple[float, float] | None, form: str) -> str:
    """Half the range, as the values are written; ``±0`` where it would be rounded to nothing."""
    if ends is None:
        return ""
    text = form.format((ends[1] - ends[0]) / 2)
    return f"±{text if any(digit in text for digit in '123456789') else '0'}"
