"""The report's plots of trials and of several models. Each names the data that it shows."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import LogNorm, Normalize

from raysae.metrics import registered
from raysae.report.atlas_rows import Row
from raysae.report.drawing import (
    CHOICE_COLOUR,
    COLOURS,
    LONGEST_LABEL,
    new_figure,
    plot_text,
    save,
)


def ev_against_l0(trials: Sequence[Row], chosen: int | None, source: str, path: Path) -> None:
    """Draw the explained variance of every finished trial against its L0, coloured by d_sae.

    The chosen trial has a ring. ``source`` is the line at the foot; ``path`` is the PNG.
    """
    figure, axes = new_figure(6.4, 4.2, source)
    sizes = [row["sae.d_sae"] for row in trials]
    points = axes.scatter(
        [row["l0"] for row in trials],
        [row["explained_variance"] for row in trials],
        c=sizes, cmap=COLOURS, norm=_size_norm(sizes), s=48, zorder=3,
    )  # fmt: skip
    for where, label in _labels(trials).items():
        axes.annotate(label, where, xytext=(6, 5), textcoords="offset points", fontsize=7)
    for row in trials:
        if row["trial"] == chosen:
            axes.scatter(
                row["l0"], row["explained_variance"], s=190, facecolors="none",
                edgecolors=CHOICE_COLOUR, linewidths=2, zorder=4, label=f"chosen: trial {chosen}",
            )  # fmt: skip
            axes.legend(loc="lower right", frameon=False)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set(xlabel=_axis("l0"), ylabel=_axis("explained_variance"))
    axes.set_title("Explained variance against L0")
    bar = figure.colorbar(points, ax=axes, label="d_sae", ticks=sorted(set(sizes)))
    bar.ax.yaxis.set_major_formatter("{x:g}")
    bar.ax.minorticks_off()
    save(figure, path)


def training_curves(
    histories: dict[str, list[Row]], sizes: list[int], source: str, path: Path
) -> None:
    """Draw validation explained variance over training tokens, a line a trial, coloured by d_sae.

    ``histories`` are the trials' records at each evaluation, by the trials' labels; ``sizes`` are their
    d_sae in the same order.
    """
    figure, axes = new_figure(6.4, 4.2, source)
    norm, colours = _size_norm(sizes), plt.get_cmap(COLOURS)
    for (name, history), size in zip(histories.items(), sizes, strict=True):
        tokens = [row["tokens"] for row in history]
        values = [row["explained_variance"] for row in history]
        label = plot_text(name, LONGEST_LABEL)
        axes.plot(tokens, values, marker=".", color=colours(norm(size)), label=label)
    axes.set(xlabel="training tokens", ylabel=_axis("explained_variance"))
    axes.xaxis.set_major_formatter(matplotlib.ticker.EngFormatter(sep=""))
    axes.set_title("Training curves")
    axes.legend(fontsize=7, frameon=False, ncols=2 if len(sizes) > 6 else 1, loc="lower right")
    save(figure, path)


def fvu_by_size(scaling: Mapping[str, Any], source: str, path: Path) -> None:
    """Draw the unexplained variance of the trials against d_sae, a colour for each K, with the law.

    ``scaling`` is the content of ``scaling.json``. Bands are the intervals of the law; crosses are what a
    law without the largest d_sae foretold there.
    """
    figure, axes = new_figure(6.4, 4.2, source)
    ks = sorted({point["k"] for point in scaling["points"]})
    norm, colours = _size_norm(ks), plt.get_cmap(COLOURS)
    for k in ks:
        mine = [point for point in scaling["points"] if point["k"] == k]
        places = [point["d_sae"] for point in mine], [point["fvu"] for point in mine]
        axes.scatter(*places, color=colours(norm(k)), s=28, zorder=3, label=f"K {k}")
    for curve in scaling.get("curves", []):
        colour = colours(norm(curve["k"]))
        axes.plot(curve["d_sae"], curve["fvu"], color=colour, linewidth=1.2)
        axes.fill_between(
            curve["d_sae"], curve["low"], curve["high"], color=colour, alpha=0.15, linewidth=0
        )
    check = scaling.get("check")
    if check is not None:
        axes.scatter(
            [check["d_sae"]] * len(check["k"]), check["foretold"], marker="x", s=36, zorder=4,
            color=CHOICE_COLOUR, label=f"foretold without d_sae {check['d_sae']}",
        )  # fmt: skip
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter("{x:g}")
        axis.set_minor_formatter(
            "{x:g}" if axis is axes.yaxis else matplotlib.ticker.NullFormatter()
        )
    axes.tick_params(which="minor", labelsize=6)
    axes.set(xlabel="d_sae", ylabel="unexplained variance (FVU, validation)")
    axes.set_title("Unexplained variance by dictionary size")
    axes.legend(frameon=False, fontsize=7, ncols=2 if len(ks) > 5 else 1)
    save(figure, path)


def ev_by_model(
    trials: Mapping[str, Sequence[Row]], chosen: Mapping[str, int | None], path: Path
) -> None:
    """Draw the explained variance of every finished trial against its L0, a colour a model.

    ``trials`` and ``chosen`` (a trial's number or None) are by the models' names; chosen trials have a
    ring.
    """
    figure, axes = new_figure(6.4, 4.2, "each model on its own activations")
    for number, (name, rows) in enumerate(trials.items()):
        colour = _colour(number)
        places = [(row["l0"], row["explained_variance"]) for row in rows]
        l0s, evs = zip(*places, strict=True)
        label = plot_text(name, LONGEST_LABEL)
        axes.scatter(l0s, evs, color=colour, s=40, zorder=3, label=label)
        for row, place in zip(rows, places, strict=True):
            if row["trial"] == chosen[name]:
                l0, ev = place
                axes.scatter(l0, ev, s=190, facecolors="none", edgecolors=colour, linewidths=2)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set(xlabel=_axis("l0"), ylabel=_axis("explained_variance"))
    axes.set_title("Trials of each model; sweet spots ringed")
    axes.legend(frameon=False, fontsize=7)
    save(figure, path)


def atlas_by_depth(
    atlases: Mapping[str, Sequence[Row]], depths: Mapping[str, int | None], path: Path
) -> None:
    """Draw the explained variance of each model's atlas over depth: mean and range over positions.

    ``depths`` are the models' numbers of layers. If one is not known (None), the axis shows the layer,
    else the layer divided by the number of layers.
    """
    relative = all(depths[name] for name in atlases)
    figure, axes = new_figure(6.4, 4.2, "mean over positions; the band is their range")
    for number, (name, rows) in enumerate(atlases.items()):
        layers = sorted({row["layer"] for row in rows})
        values = [
            [row["explained_variance"] for row in rows if row["layer"] == layer] for layer in layers
        ]
        depth = depths[name] if relative else None
        places = [layer / depth if depth else layer for layer in layers]
        axes.plot(
            places,
            [float(np.mean(v)) for v in values],
            marker=".",
            color=_colour(number),
            label=plot_text(name, LONGEST_LABEL),
        )
        axes.fill_between(
            places, list(map(min, values)), list(map(max, values)), color=_colour(number), alpha=0.15,
            linewidth=0,
        )  # fmt: skip
    axes.set_xlabel("depth (layer / number of layers)" if relative else "layer")
    axes.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(integer=not relative))
    axes.set_ylabel(_axis("explained_variance"))
    axes.set_title("Atlases by depth")
    axes.legend(frameon=False, fontsize=7)
    save(figure, path)


def _axis(metric: str) -> str:
    """How the axes of plots call a metric."""
    return registered()[metric].axis


def _colour(number: int) -> Any:
    """The colour of model ``number``."""
    return plt.get_cmap("tab10")(number % 10)


def _labels(trials: Sequence[Row]) -> dict[tuple[float, float], str]:
    """Trial numbers by the point in the plot; trials at the same point have one label."""
    labels: dict[tuple[float, float], str] = {}
    for row in trials:
        where = (round(row["l0"], 1), round(row["explained_variance"], 2))
        labels[where] = f"{labels[where]}, {row['trial']}" if where in labels else str(row["trial"])
    return labels


def _size_norm(sizes: Sequence[int]) -> Normalize:
    low, high = min(sizes), max(sizes)
    return LogNorm(low, high) if low < high else LogNorm(low / 2, high * 2)
