"""Plots of tracking: the flow of features through the layers, and the shares that are kept."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Row = Mapping[str, Any]
KEPT, DIED, BORN, BAR = "#3b7dd8", "#d1495b", "#3a9d5d", "#44546a"
MOST_PANELS = 12
ACROSS = 3
STUB = 0.32
"""How far what dies or is born reaches between two layers, in layers."""


def draw_flow(rows: Sequence[Row], source: str, path: Path) -> None:
    """Draw what is kept, dies and is born from layer to layer, a panel a position.

    ``rows`` are the table ``flow``. Of more than 12 positions the sum over them is drawn.
    """
    from matplotlib.patches import Patch

    from raysae.report.drawing import grid_figure, save

    panels = _panels(rows)
    across = min(ACROSS, len(panels))
    down = -(-len(panels) // across)
    figure, grid = grid_figure(
        (max(3.6 * across, 5.0), 1.0 + 2.6 * down), (down, across), (0.3, 0.5),
        "Features from layer to layer", source, sharey=True,
    )  # fmt: skip
    for number, axes in enumerate(grid.flat):
        if number >= len(panels):
            axes.set_visible(False)
            continue
        name = list(panels)[number]
        _flow(axes, panels[name], name, number % across == 0)
    names = (("kept", KEPT), ("dies", DIED), ("born", BORN))
    figure.legend(
        handles=[Patch(color=colour, label=name, alpha=0.7) for name, colour in names],
        loc="upper right", ncols=3, fontsize=8, frameon=False,
    )  # fmt: skip
    save(figure, path)


def _panels(rows: Sequence[Row]) -> dict[str, list[Row]]:
    panels: dict[str, list[Row]] = {}
    for row in rows:
        hookpoint = f"{row['hookpoint']}, " if row.get("hookpoint") else ""
        panels.setdefault(f"{hookpoint}position {row['position']}", []).append(row)
    if len(panels) <= MOST_PANELS:
        return panels
    layers = sorted({row["layer"] for row in rows})
    summed = [_summed(layer, [row for row in rows if row["layer"] == layer]) for layer in layers]
    return {f"sum over {len(panels)} positions": summed}


def _summed(layer: int, rows: Sequence[Row]) -> Row:
    counts = ("compared", "kept", "died", "born")
    sums = {
        name: sum(known)
        if (known := [row[name] for row in rows if row[name] is not None])
        else None
        for name in counts
    }
    return {"layer": layer, **sums}


def _flow(axes: Any, rows: Sequence[Row], name: str, first: bool) -> None:
    from raysae.report.drawing import plot_text

    for place, row in enumerate(rows):
        axes.bar(place, row["compared"], width=0.12, color=BAR, zorder=3)
        if row["kept"] is not None:
            _band(axes, place, place + 1, row["kept"], row["kept"], KEPT)
            axes.text(place + 0.5, row["kept"] / 2, f"{row['kept']:,}", ha="center", va="center",
                      fontsize=8)  # fmt: skip
            _stub(axes, place, row["compared"], row["died"], 1, DIED)
        if row["born"] is not None:
            _stub(axes, place, row["compared"], row["born"], -1, BORN)
    axes.set_title(plot_text(name), fontsize=9)
    axes.set_xticks(range(len(rows)), [str(row["layer"]) for row in rows])
    axes.set_xlabel("layer")
    if first:
        axes.set_ylabel("features")


def _band(axes: Any, start: float, end: float, left: float, right: float, colour: str) -> None:
    axes.fill_between([start, end], [left, right], color=colour, alpha=0.35, linewidth=0)


def _stub(axes: Any, place: int, top: int, count: int, way: int, colour: str) -> None:
    """What dies leaves to the right (``way`` 1) and what is born comes from the left, above the kept."""
    if not count:
        return
    tip = place + way * STUB
    axes.fill([place, place, tip], [top - count, top, top - count / 2], color=colour, alpha=0.7,
              linewidth=0)  # fmt: skip
    align = "left" if way > 0 else "right"
    axes.text(tip, top - count / 2, f"{count:,}", color=colour, fontsize=8, ha=align, va="center")


def draw_persistence(rows: Sequence[Row], source: str, path: Path) -> None:
    """Draw the share of features kept in every pair of sites with its interval, beside the control's.

    ``rows`` are the table ``pairs``.
    """
    from raysae.report.drawing import new_figure, plot_text, save

    figure, axes = new_figure(9.5, 4.2, source)
    kinds = (("layer to layer", "o", False), ("position to position", "s", True))
    start = 0
    for name, marker, by_position in kinds:
        mine = [row for row in rows if (row["first_layer"] == row["second_layer"]) is by_position]
        places = range(start, start + len(mine))
        start += len(mine)
        _shares(axes, places, mine, "kept_share", KEPT, marker, f"kept, {name}")
        _shares(axes, places, mine, "control_share", DIED, marker, f"permuted, {name}")
    axes.set_ylim(-0.03, 1.03)
    axes.set_xlabel("pair of sites, by layer and position")
    axes.set_ylabel("share of features kept (95% CI)")
    axes.set_title(plot_text("Features kept between neighbouring sites"))
    axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1.0))
    save(figure, path)


def _shares(
    axes: Any, places: range, rows: Sequence[Row], name: str, colour: str, marker: str, label: str
) -> None:
    if not rows:
        return
    share = [row[name] for row in rows]
    spread = [
        [max(row[name] - row[f"{name}_low"], 0) for row in rows],
        [max(row[f"{name}_high"] - row[name], 0) for row in rows],
    ]
    axes.errorbar(places, share, yerr=spread, fmt=marker, color=colour, markersize=3.5, linewidth=0.9,
                  label=label)  # fmt: skip
