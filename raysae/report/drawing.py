"""What the report's plots share: style, colours, texts of the user, the line at the foot."""

import warnings
from pathlib import Path
from typing import Any, cast

import matplotlib

matplotlib.use("Agg")  # before pyplot: a report needs no display
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from raysae.printable import printable, shortened

DPI = 144
MOST_INCHES = (11.1, 13.8)
"""Width and height of a plot, at most: 1,598 x 1,987 pixels."""
STYLE: dict[str, Any] = {
    "figure.dpi": DPI,
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "text.usetex": False,
    "svg.fonttype": "none",  # text stays text: small, and found by a search
    "svg.hashsalt": "raysae",
}
COLOURS = "viridis"
LONGEST, LONGEST_LABEL, LONGEST_TICK = 110, 48, 24
"""Characters of a text of the user, of its name in a legend, and of its name at an axis, at most."""
CHOICE_COLOUR = "#d1495b"
HATCHING: dict[str, Any] = {
    "facecolor": "white", "edgecolor": CHOICE_COLOUR, "hatch": "//////", "linewidth": 0.0,
}  # fmt: skip
"""How a site without SAE is drawn."""


def plot_text(text: str, longest: int = LONGEST) -> str:
    """A name or text of the user for any place of a plot: shown as it is, in one line.

    ``$`` begins no formula, control characters are escapes, and a text longer than ``longest``
    characters is cut in its middle.
    """
    shown = shortened(printable(text), longest).replace("$", r"\$")
    # matplotlib leaves a label that begins with "_" out of the legend
    return f" {shown}" if shown.startswith("_") else shown


def new_figure(width: float, height: float, source: str) -> tuple[Figure, Axes]:
    """A figure of ``width`` x ``height`` inches, or of the largest size allowed, with one plot.

    ``source`` is the line at its foot.
    """
    figure = _figure(width, height, "constrained")
    figure.supxlabel(plot_text(source), fontsize=6.5, color="#666666")
    return figure, figure.subplots()


def grid_figure(
    size: tuple[float, float],
    shape: tuple[int, int],
    edges: tuple[float, float],
    title: str,
    source: str,
    **sharing: Any,
) -> tuple[Figure, np.ndarray]:
    """A figure of ``size`` in inches with ``[rows, columns]`` plots, a title and the line at the foot.

    ``edges`` are the heights of the headings above and of the labels below, in inches. Its layout is
    given, because finding one for many plots takes longer than drawing them.
    """
    figure = _figure(*size, None)
    width, height = figure.get_size_inches()
    top, bottom = edges
    grid = figure.subplots(
        *shape, squeeze=False, **sharing,
        gridspec_kw={
            "left": 0.92 / width, "right": 1 - 0.12 / width, "top": 1 - (top + 0.25) / height,
            "bottom": (bottom + 0.25) / height, "wspace": 0.08, "hspace": 0.12 if top > 0.3 else 0.3,
        },
    )  # fmt: skip
    figure.suptitle(plot_text(title), y=1 - 0.06 / height, va="top", fontsize=10, fontweight="bold")
    figure.text(
        0.5, 0.06 / height, plot_text(source), ha="center", va="bottom", fontsize=6.5,
        color="#666666",
    )  # fmt: skip
    return figure, grid


def _figure(width: float, height: float, layout: Any) -> Figure:
    plt.rcParams.update(cast(Any, STYLE))
    return plt.figure(
        figsize=(min(width, MOST_INCHES[0]), min(height, MOST_INCHES[1])), layout=layout
    )


def save(figure: Figure, path: Path) -> None:
    """Write the figure as a PNG and, beside it, as an SVG of the same name; close it.

    By the canvases themselves: ``savefig`` draws each of the two twice.
    """
    with warnings.catch_warnings():
        # a character that no font has is drawn as a box; the page has the text itself
        warnings.filterwarnings("ignore", message=r"(?s).*missing from.*font")
        FigureCanvasAgg(figure).print_png(path)
        figure.set_layout_engine("none")  # the layout is found; SVG has other dots an inch
        FigureCanvasSVG(figure).print_svg(path.with_suffix(".svg"), metadata={"Date": None})
    plt.close(figure)
