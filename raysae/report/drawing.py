"""What the report's plots share: style, colours, texts of the user, the line at the foot."""

import warnings
from pathlib import Path
from typing import Any, cast

import matplotlib

matplotlib.use("Agg")  # before pyplot: a report needs no display
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from raysae.printable import printable, shortened

DPI = 144
MOST_INCHES = (11.1, 13.8)
"""Width and height of a plot, at most: 1,598 x 1,987 pixels."""
STYLE: dict[str, Any] = {
    "figure.dpi": DPI,
    "savefig.dpi": "figure",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "text.usetex": False,
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
    """A figure of ``width`` x ``height`` inches with one plot; ``source`` is the line at its foot."""
    figure = empty_figure(width, height, source)
    return figure, figure.subplots()


def empty_figure(width: float, height: float, source: str) -> Figure:
    """A figure of ``width`` x ``height`` inches, or of the largest size allowed, without a plot."""
    plt.rcParams.update(cast(Any, STYLE))
    size = min(width, MOST_INCHES[0]), min(height, MOST_INCHES[1])
    figure = plt.figure(figsize=size, layout="constrained")
    figure.supxlabel(plot_text(source), fontsize=6.5, color="#666666")
    return figure


def save(figure: Figure, path: Path) -> None:
    """Write the figure as a PNG and close it."""
    with warnings.catch_warnings():
        # a character that no font has is drawn as a box; the page has the text itself
        warnings.filterwarnings("ignore", message=r"(?s).*missing from.*font")
        figure.savefig(path)
    plt.close(figure)
