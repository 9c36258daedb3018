"""The plots of detection: AUROC by layer and input, and reliability of the predicted probabilities."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from raysae.analysis.detecting.inputs import (
    LENGTH,
    RAW,
    SAE,
    TOKENS,
    TRAJECTORIES,
    sparse_kind,
)

LINES = (SAE, RAW, sparse_kind(SAE, 1), sparse_kind(SAE, 5))
LEVELS = (TOKENS, LENGTH, TRAJECTORIES)
COLOURS = {
    SAE: "#1b6ca8", RAW: "#d1495b", sparse_kind(SAE, 1): "#8fb8de", sparse_kind(SAE, 5): "#4d90c4",
    TOKENS: "#5b8c3a", LENGTH: "#888888", TRAJECTORIES: "#b8860b",
}  # fmt: skip
MOST_PANELS = 9
Row = Mapping[str, Any]


def draw_areas(rows: Sequence[Row], source: str, folder: Path) -> None:
    """AUROC with its interval by layer, a panel a position (at most ``MOST_PANELS``)."""
    from raysae.report.drawing import grid_figure, save

    there = list(dict.fromkeys(_panel(row) for row in rows if row["layer"] is not None))
    panels = there[:MOST_PANELS]
    if not panels:
        return
    wide = min(len(panels), 3)
    high = -(-len(panels) // wide)
    left = (
        f" (the first {MOST_PANELS} of {len(there)} positions)" if len(there) > len(panels) else ""
    )
    n = max(row["n"] for row in rows)
    figure, axes = grid_figure(
        (max(3.5 * wide + 1, 7.5), 3.0 * high + 1.4), (high, wide), (0.3, 1.0),
        f"Detection by layer, AUROC with 95% intervals, n = {n:,} sequences{left}", source,
        sharex=True, sharey=True,
    )  # fmt: skip
    for ax in axes.flat[len(panels) :]:
        ax.set_axis_off()
    for ax, panel in zip(axes.flat, panels, strict=False):
        _lines(ax, [row for row in rows if row["layer"] is not None and _panel(row) == panel])
        for kind in LEVELS:
            for row in rows:
                if row["input"] == kind:
                    ax.axhline(row["auroc"], color=COLOURS[kind], linestyle="--", label=kind)
        ax.axhline(0.5, color="black", linewidth=0.8, label="chance")
        ax.set_title(panel)
    for column in range(wide):
        axes[(len(panels) - 1 - column) // wide, column].set_xlabel("layer")
    for row_of_axes in axes:
        row_of_axes[0].set_ylabel("AUROC, out of fold")
    handles, labels = axes.flat[0].get_legend_handles_labels()
    unique = dict(zip(labels, handles, strict=True))
    figure.legend(
        unique.values(), unique.keys(), loc="upper center", ncols=min(len(unique), 4), fontsize=8,
        frameon=False, bbox_to_anchor=(0.5, 0.75 / figure.get_size_inches()[1]),
    )  # fmt: skip
    save(figure, folder / "auroc_by_layer.png")


def _panel(row: Row) -> str:
    name = f"position {row['position']}"
    return name if row["hookpoint"] is None else f"{row['hookpoint']}, {name}"


def _lines(ax: Any, rows: Sequence[Row]) -> None:
    for place, kind in enumerate(LINES):
        mine = sorted((row for row in rows if row["input"] == kind), key=lambda row: row["layer"])
        layer = [row["layer"] + 0.06 * (place - 1.5) for row in mine]
        value = [row["auroc"] for row in mine]
        ends = [
            [row["auroc"] - row["auroc_low"] for row in mine],
            [row["auroc_high"] - row["auroc"] for row in mine],
        ]
        ax.errorbar(
            layer, value, yerr=ends, color=COLOURS[kind], marker="o", markersize=3.5, capsize=2,
            linewidth=1.2, label=kind,
        )  # fmt: skip
    ax.set_xticks(sorted({row["layer"] for row in rows}))


def draw_reliability(bins: Sequence[Row], source: str, folder: Path) -> None:
    """The share of positives by predicted probability, for each input's best site; a point's area grows
    with its sequences."""
    from raysae.report.drawing import new_figure, save

    if not bins:
        return
    figure, ax = new_figure(6.2, 5.6, source)
    ax.plot([0, 1], [0, 1], color="black", linewidth=0.8, label="calibrated")
    for kind in (SAE, RAW, TRAJECTORIES, TOKENS, LENGTH):
        mine = [row for row in bins if row["input"] == kind]
        if not mine:
            continue
        top = max(mine, key=lambda row: row["auroc"])
        same = ("layer", "position", "hookpoint")
        mine = [row for row in mine if all(row[key] == top[key] for key in same)]
        total = sum(row["n"] for row in mine)
        where = "" if top["layer"] is None else f" (layer {top['layer']}, {_panel(top)})"
        predicted, observed = ([row[key] for row in mine] for key in ("predicted", "observed"))
        ax.plot(predicted, observed, color=COLOURS[kind], linewidth=1.2, label=f"{kind}{where}")
        area = [12 + 220 * row["n"] / total for row in mine]
        ax.scatter(predicted, observed, s=area, color=COLOURS[kind], alpha=0.5)
    n = sum(row["n"] for row in mine) if mine else 0
    ax.set_title(f"Predicted probability and what came, n = {n:,} sequences")
    ax.set_xlabel("mean predicted probability of the positive class (10 bins)")
    ax.set_ylabel("share of positives")
    ax.set_xlim(-0.02, 1.02)
    ax.set_ylim(-0.02, 1.02)
    ax.legend(fontsize=8, loc="lower right")
    save(figure, folder / "reliability.png")
