"""Training curves of an atlas's sites as small multiples, of bounded number and size."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.collections import LineCollection

from raysae.metrics import registered
from raysae.report.atlas_rows import AnyRow, Row
from raysae.report.drawing import LONGEST_LABEL, grid_figure, plot_text, save

MOST_CURVES, COLUMNS = 24, 6
LINE_COLOUR, OTHERS = "#3b528b", "#c8ccd4"
BELOW = 1.5
"""How far below the lowest end of a curve the axis begins, at most, as a share of the axis above it."""


@dataclass(frozen=True)
class Curve:
    """The training curve of one site."""

    name: str
    history: Sequence[Row]
    """The record of each evaluation."""


def sampled(rows: Sequence[AnyRow], most: int = MOST_CURVES) -> list[AnyRow]:
    """At most ``most`` of the rows with explained variance: at even ranks of it, from the lowest to the
    highest; all of them, in their order, if there are no more."""
    if len(rows) <= most:
        return list(rows)
    ranked = sorted(rows, key=lambda row: row["explained_variance"])
    ranks = np.linspace(0, len(ranked) - 1, most).round().astype(int)
    return [ranked[rank] for rank in ranks]


def rule_of(shown: int, there: int, what: str = "sites") -> str:
    """Which sites (or trials) are shown, in words."""
    if shown == there:
        return f"all {there:,} {what}" if there > 1 else f"the only {what.removesuffix('s')}"
    return (
        f"{shown:,} of {there:,} {what}, at even ranks of explained variance from the lowest to the "
        "highest"
    )


def site_curves(curves: Sequence[Curve], there: int, source: str, path: Path) -> None:
    """Draw validation explained variance over training tokens, a small plot a site; the other sites'
    curves are grey in each. ``there`` is the number of sites with an SAE."""
    columns = min(COLUMNS, len(curves))
    lines = -(-len(curves) // columns)
    size = max(4.5, 0.9 + 1.7 * columns), 1.2 + 1.5 * lines
    title = f"Training curves: {rule_of(len(curves), there)}"
    figure, grid = grid_figure(
        size, (lines, columns), (0.3, 0.35), title, source, sharex=True, sharey=True
    )
    others = [_points(curve) for curve in curves]
    for axes, curve in zip(grid.flat, curves, strict=False):
        axes.add_collection(LineCollection(others, colors=OTHERS, linewidths=0.6, zorder=1))
        places = _points(curve)
        marker = "." if len(places) == 1 else ""
        axes.plot(*places.T, color=LINE_COLOUR, linewidth=1.5, marker=marker, zorder=3)
        axes.set_title(_heading(curve), fontsize=7, fontweight="normal")
        axes.tick_params(labelsize=7)
    for axes in grid.flat[len(curves) :]:
        axes.set_visible(False)
    for axes in grid.flat[max(len(curves) - columns, 0) : len(curves)]:
        axes.tick_params(labelbottom=True)
        axes.set_xlabel("training tokens", fontsize=7)
    grid[0, 0].set_ylim(curve_limits(curves))
    grid[0, 0].xaxis.set_major_formatter(matplotlib.ticker.EngFormatter(sep=""))
    grid[0, 0].xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(3))
    figure.supylabel(
        registered()["explained_variance"].axis, fontsize=8, x=0.06 / size[0], ha="left"
    )
    save(figure, path)


def _points(curve: Curve) -> np.ndarray:
    """``[evaluations, 2]``: tokens and explained variance."""
    tokens = [row["tokens"] for row in curve.history]
    return np.column_stack([np.array(tokens, float), curve_values(curve)])


def _heading(curve: Curve) -> str:
    last = curve_values(curve)[-1:]
    shown = registered()["explained_variance"].cell.format(*last) if len(last) else "no record"
    return f"{plot_text(curve.name, LONGEST_LABEL)}: {shown}"


def curve_values(curve: Curve) -> np.ndarray:
    """The explained variance at each evaluation; NaN where it is not defined."""
    values = [row.get("explained_variance") for row in curve.history]
    return np.array([np.nan if value is None else value for value in values], float)


def curve_limits(curves: Sequence[Curve]) -> tuple[float, float]:
    """The range of the axis: that of the values, without starts that lie far below the rest."""
    known = [values[np.isfinite(values)] for values in map(curve_values, curves)]
    known = [values for values in known if len(values)]
    if not known:
        return 0.0, 1.0
    low, high = min(map(np.min, known)), max(map(np.max, known))
    lowest_end = min(values[-1] for values in known)
    low = max(low, lowest_end - BELOW * max(high - lowest_end, 0.05))
    margin = 0.05 * (high - low) or 0.05
    return float(low - margin), float(high + margin)
