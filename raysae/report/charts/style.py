"""What the interactive charts share: colours, axes, hover, and texts of the user."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from bokeh.models import (
    BasicTickFormatter,
    ColorBar,
    ColumnDataSource,
    FixedTicker,
    HoverTool,
    LinearColorMapper,
    LogColorMapper,
    LogTicker,
    NumeralTickFormatter,
    Range1d,
    TapTool,
)
from bokeh.palettes import Viridis256
from bokeh.plotting import figure

from raysae.printable import printable, shortened
from raysae.redaction import redacted
from raysae.report.drawing import CHOICE_COLOUR, LONGEST_LABEL
from raysae.report.grids import DECADE

SERIES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f")
"""Colours that people with any colour vision tell apart (Okabe and Ito 2008), and grey."""
DASHES = ("solid", "dashed", "dotted", "dotdash")
"""How lines differ where there are more of them than colours."""
PATTERNS = {"solid": "none", "dashed": "6", "dotted": "2 4", "dotdash": "2 4 6 4"}
AREAS = list(Viridis256)
SPOTS = AREAS[55:240]
"""The colours of points and lines: those of areas without the darkest and the brightest, which are lost
on a dark or a white page."""
CHOSEN, LINE, QUIET = CHOICE_COLOUR, SERIES[0], "#98a2b3"
TOOLS = "pan,box_zoom,wheel_zoom,reset,save"
HEIGHT = 340
"""Pixels of a chart without a grid."""
MOST_TICKS = 10
"""Names at an axis of names, at most: they stand side by side at a phone's width."""


@dataclass(frozen=True)
class Series:
    """One line or set of points that the legend under a chart can isolate."""

    key: str
    """The name of its renderers."""
    label: str
    colour: str
    dash: str = "solid"

    @property
    def pattern(self) -> str:
        """The dash as SVG has it."""
        return PATTERNS[self.dash]


@dataclass(frozen=True)
class Chart:
    """A chart of the page, with what stands around it."""

    name: str
    """Unique on the page: letters, digits, hyphens and underscores."""
    title: str
    about: str
    """What it shows and what a click does, in a sentence."""
    model: Any
    series: list[Series] = field(default_factory=list)
    wide: bool = False
    """Whether it has a line of the page to itself."""
    file: str = ""
    """Stem of the PNG and the SVG that show the same; empty where there is none."""


def plain(text: object, longest: int = LONGEST_LABEL) -> str:
    """A name or text of the user for any place of a chart: in one line, without secrets and formulas.

    Bokeh takes a text with ``$$`` or a bracket after a backslash for a formula; an invisible character
    between the two prevents it.
    """
    shown = shortened(printable(redacted(str(text))), longest)
    return shown.replace("$$", "$\u2060$").replace("\\", "\\\u2060")


def new_chart(x: str, y: str, height: int = HEIGHT, **options: Any) -> figure:
    """An empty chart with titles at its axes, as wide as the page lets it be.

    A drag or the wheel scrolls the page until a tool is chosen; ``options`` go to Bokeh's figure.
    """
    chart = figure(
        x_axis_label=x, y_axis_label=y, height=height, sizing_mode="stretch_width", min_width=200,
        tools=TOOLS, active_drag=None, active_scroll=None, toolbar_location="above",
        background_fill_color=None, border_fill_color=None, outline_line_color=None, **options,
    )  # fmt: skip
    chart.toolbar.logo = None
    for axis in chart.axis:
        axis.formatter = BasicTickFormatter(use_scientific=False)
        axis.axis_label_text_font_style = "normal"
    chart.grid.grid_line_alpha = 0.35
    return chart


def is_logarithmic(values: Iterable[float]) -> bool:
    """Whether the values need a logarithmic scale: positive, and more than a decade and a half apart."""
    known = [value for value in values if math.isfinite(value)]
    return bool(known) and min(known) > 0 and max(known) / min(known) > DECADE


def is_doubling(values: Iterable[float]) -> bool:
    """Whether a setting with these values is shown on a logarithmic scale: two doublings or more."""
    known = [value for value in values if math.isfinite(value)]
    return bool(known) and min(known) > 0 and max(known) / min(known) >= 4


def doublings(axis: Any) -> None:
    """Ticks at powers of two on a logarithmic axis."""
    axis.ticker = LogTicker(base=2, desired_num_ticks=7)
    axis.formatter = BasicTickFormatter(use_scientific=False)


def tokens_axis(axis: Any) -> None:
    """Ticks such as ``20k`` and ``1.5m``."""
    axis.formatter = NumeralTickFormatter(format="0.[0]a")
    axis.ticker.desired_num_ticks = 5


def names_axis(axis: Any, names: Sequence[str], most: int = MOST_TICKS) -> None:
    """Name every n-th of the places 0, 1, 2, ... of an axis, so that at most ``most`` are named."""
    wanted = max(1, -(-len(names) // max(most, 1)))
    step = next(
        digit * 10**power
        for power in range(9)
        for digit in (1, 2, 5)
        if digit * 10**power >= wanted
    )
    places = list(range(0, len(names), step))
    axis.ticker = FixedTicker(ticks=places)
    axis.major_label_overrides = {place: plain(names[place], 24) for place in places}


def around(values: Iterable[float], logarithmic: bool = False, margin: float = 0.06) -> Range1d:
    """A range that holds the values with a margin; of one value, too."""
    known = [float(value) for value in values if math.isfinite(value)] or [
        0.5 if logarithmic else 0
    ]
    low, high = min(known), max(known)
    if logarithmic:
        factor = max((high / low) ** margin, 1.2)
        return Range1d(low / factor, high * factor)
    room = (high - low) * margin or abs(high) * margin or 1.0
    return Range1d(low - room, high + room)


def colours(
    values: Sequence[float], ends: tuple[float, float, bool] | None = None,
    palette: Sequence[str] = SPOTS,
) -> LinearColorMapper | LogColorMapper:  # fmt: skip
    """The scale of colours for these values: viridis, which all kinds of colour vision read.

    ``ends`` are the lowest and the highest value of the scale and whether it is logarithmic.
    """
    known = [value for value in values if math.isfinite(value)] or [0.0, 1.0]
    low, high, logarithmic = ends or (min(known), max(known), is_logarithmic(known))
    if low == high:
        low, high = (low / 2, high * 2) if logarithmic else (low - 0.5, high + 0.5)
    kind = LogColorMapper if logarithmic else LinearColorMapper
    return kind(palette=list(palette), low=low, high=high, nan_color="rgba(0,0,0,0)")


def add_colour_bar(chart: Any, mapper: Any, doubling: bool = False) -> None:
    """A scale of the colours at the right; the text above the chart says of what."""
    bar = ColorBar(
        color_mapper=mapper, width=12, padding=4, background_fill_color=None,
        formatter=BasicTickFormatter(use_scientific=False, precision=3),
    )  # fmt: skip
    if doubling:
        bar.ticker = LogTicker(base=2)
    elif isinstance(mapper, LogColorMapper):
        bar.formatter = NumeralTickFormatter(format="0.[00000]")
        bar.ticker = FixedTicker(ticks=_decades(mapper.low, mapper.high))
    chart.add_layout(bar, "right")


def _decades(low: float, high: float) -> list[float]:
    """Ticks 1, 2, 5, 10, ... of a logarithmic scale; its decades where it has many."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    digits = (1, 2, 5) if last - first <= 3 else (1,)
    ticks = (digit * 10.0**power for power in range(first, last + 1) for digit in digits)
    return [tick for tick in ticks if low <= tick <= high]


def add_hover(chart: Any, tooltips: Sequence[tuple[str, str]], *renderers: Any) -> None:
    """Show these figures of the point that the pointer is over."""
    chart.add_tools(
        HoverTool(tooltips=list(tooltips), renderers=list(renderers), point_policy="follow_mouse")
    )


def add_tap(chart: Any, *renderers: Any) -> None:
    """Let a click choose a point; the page goes to its row."""
    tap = TapTool(renderers=list(renderers))
    chart.add_tools(tap)
    chart.toolbar.active_tap = tap


def ring(chart: Any, x: float, y: float) -> None:
    """A ring around the choice."""
    chart.scatter([x], [y], size=20, fill_color=None, line_color=CHOSEN, line_width=2.5)


def source_of(columns: Mapping[str, Sequence[Any] | np.ndarray], name: str) -> ColumnDataSource:
    """The columns as a source of charts; numbers become NaN where they are None."""
    return ColumnDataSource({key: _column(values) for key, values in columns.items()}, name=name)


def _column(values: Sequence[Any] | np.ndarray) -> Any:
    found = list(values)
    if all(value is None or isinstance(value, int | float) for value in found):
        return np.array([math.nan if value is None else float(value) for value in found])
    return found


def look_of(number: int) -> tuple[str, str]:
    """Colour and dash of series ``number``."""
    return SERIES[number % len(SERIES)], DASHES[number // len(SERIES) % len(DASHES)]
