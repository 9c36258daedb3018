"""The charts of a search: parallel coordinates, slices, the importance of settings, the timeline."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from bokeh.models import Range1d

from raysae.metrics import registered
from raysae.records.rows import TrialRow
from raysae.report.charts.style import (
    LINE,
    QUIET,
    SERIES,
    Chart,
    Series,
    add_colour_bar,
    add_hover,
    add_tap,
    around,
    colours,
    doublings,
    is_doubling,
    names_axis,
    new_chart,
    plain,
    source_of,
)
from raysae.report.charts.trial_data import TrialData, axis_of, short_name
from raysae.report.charts.trials import CLICK, EV

OUTCOMES = ("l0", "dead_fraction", "stability", EV)
"""The metrics that parallel coordinates show after the settings."""
MOST_AXES, MOST_SLICES = 9, 8
STATES = {"done": SERIES[0], "failed": SERIES[1], "stopped": SERIES[4], "degenerate": SERIES[3]}


def parallel_chart(data: TrialData) -> Chart | None:
    """A line a trial through its settings and outcomes; None with fewer than two trials."""
    settings = data.varied()
    if len(data.rows) < 2 or not settings:
        return None
    outcomes = [name for name in OUTCOMES if len({*data.values(name)}) > 1]
    names = [*settings, *outcomes][-MOST_AXES:]
    chart = new_chart("settings and outcomes of a trial", "", y_range=Range1d(-0.16, 1.12))
    chart.yaxis.visible, chart.grid.visible = False, False
    places = [_Axis([row.get(name) for row in data.rows]) for name in names]
    data.source.data["px"] = [list(range(len(names)))] * len(data.rows)
    data.source.data["py"] = [list(line) for line in zip(*(a.places for a in places), strict=True)]
    mapper = colours(data.values(EV))
    lines = chart.multi_line(
        "px", "py", source=data.source, line_width=1.8, line_alpha=0.75,
        line_color={"field": EV, "transform": mapper},
    )  # fmt: skip
    for number, axis in enumerate(places):
        axis.draw(chart, number)
    names_axis(chart.xaxis[0], [_name(name) for name in names], MOST_AXES)
    chart.x_range = Range1d(-0.4, len(names) - 0.3)
    add_colour_bar(chart, mapper)
    add_hover(chart, data.tooltips, lines)
    add_tap(chart, lines)
    return Chart(
        "parallel", "Parallel coordinates",
        f"Each line is a trial, coloured by explained variance; {CLICK}.", chart, wide=True,
    )  # fmt: skip


def _name(column: str) -> str:
    """The column's name at the foot of its axis: a setting's, or a metric's title."""
    known = registered().get(column)
    return short_name(column) if known is None else known.title


class _Axis:
    """One axis of the parallel coordinates: values, words or numbers, as places from 0 to 1."""

    def __init__(self, values: Sequence[Any]):
        known = [value for value in values if value is not None]
        numbers = [float(value) for value in known if isinstance(value, int | float)]
        if len(numbers) == len(known):
            self._scale_numbers(values, [value for value in numbers if math.isfinite(value)])
        else:
            words = sorted({plain(value, 16) for value in known})
            self.ticks = [(n / max(len(words) - 1, 1), word) for n, word in enumerate(words)]
            where = {word: place for place, word in self.ticks}
            self.places = [where.get(plain(value, 16), math.nan) for value in values]

    def _scale_numbers(self, values: Sequence[Any], numbers: Sequence[float]) -> None:
        logarithmic = is_doubling(numbers)
        scale = math.log2 if logarithmic else float
        low, high = scale(min(numbers)), scale(max(numbers))
        width = high - low or 1.0
        self.places = [math.nan if v is None else (scale(v) - low) / width for v in values]
        several = sorted({*numbers})
        shown = several if len(several) <= 6 and logarithmic else [min(numbers), max(numbers)]
        self.ticks = [((scale(v) - low) / width, f"{v:.4g}") for v in shown]

    def draw(self, chart: Any, number: int) -> None:
        """Draw the axis at x = ``number`` with its ticks."""
        chart.segment([number], [0], [number], [1], color=QUIET, line_width=1.5)
        chart.text(
            [number] * len(self.ticks), [place for place, _ in self.ticks],
            [text for _, text in self.ticks], text_font_size="11px", x_offset=5, y_offset=-2,
            text_color=QUIET, name="soft",
        )  # fmt: skip


def slice_charts(data: TrialData) -> list[Chart]:
    """Explained variance against each setting that was varied."""
    return [
        Chart(
            f"slice-{number}", f"Explained variance against {short_name(key)}",
            f"Each point is a trial; {CLICK}.", _slice(data, key),
        )
        for number, key in enumerate(data.varied()[:MOST_SLICES])
    ]  # fmt: skip


def _slice(data: TrialData, key: str) -> Any:
    column, numbers = f"s{data.searched.index(key)}", data.values(key)
    words = sorted({str(row[key]) for row in data.rows if isinstance(row.get(key), str)})
    if words:
        data.source.data[f"w{column}"] = [
            words.index(row[key]) if isinstance(row.get(key), str) else math.nan
            for row in data.rows
        ]
        column = f"w{column}"
    logarithmic = not words and is_doubling(numbers)
    chart = new_chart(
        short_name(key), axis_of(EV), 260, x_axis_type="log" if logarithmic else "linear",
        x_range=Range1d(-0.5, len(words) - 0.5) if words else around(numbers, logarithmic),
        y_range=around(data.values(EV)),
    )  # fmt: skip
    if words:
        names_axis(chart.xaxis[0], words, 4)
    elif logarithmic and min(filter(math.isfinite, numbers)) >= 1:
        doublings(chart.xaxis[0])
    points = chart.scatter(
        column, EV, source=data.source, size=8, fill_color=LINE, fill_alpha=0.6, line_color=None
    )
    add_hover(chart, data.tooltips, points)
    add_tap(chart, points)
    return chart


def importance_chart(importance: Mapping[str, float]) -> Chart:
    """The share of the variance of explained variance that each setting accounts for."""
    names = list(importance)[::-1]
    values = [importance[name] for name in names]
    chart = new_chart(
        "share of the variance (fANOVA)", "setting", 90 + 34 * len(names), x_range=Range1d(0, 1.05),
        y_range=Range1d(-0.6, len(names) - 0.4),
    )  # fmt: skip
    names_axis(chart.yaxis[0], [short_name(name) for name in names], 40)
    source = source_of(
        {
            "y": range(len(names)), "value": values, "text": [f"{value:.1%}" for value in values],
            "name": [plain(name) for name in names],
        },
        "importance",
    )  # fmt: skip
    bars = chart.hbar("y", 0.6, "value", source=source, color=LINE)
    add_hover(chart, [("setting", "@name"), ("share", "@text")], bars)
    return Chart(
        "importance", "Which settings mattered",
        "Importance for explained variance: fANOVA of a random forest over the trials "
        "(Hutter et al. 2014), computed by Optuna.", chart,
    )  # fmt: skip


def timeline_chart(rows: Sequence[TrialRow]) -> Chart | None:
    """When each trial ran, coloured by how it ended; None where the records have no times.

    Trials without times, as of some that failed, are crosses at the left.
    """
    timed = [row for row in rows if row.get("started") is not None and row.seconds is not None]
    if not timed:
        return None
    first = min(row["started"] for row in timed)
    length = max(row["started"] + (row.seconds or 0) for row in timed) - first
    chart = new_chart("seconds since the first trial began", "trial", _height(len(rows)))
    numbers = [row.trial for row in rows]
    chart.y_range = Range1d(max(numbers) + 0.8, min(numbers) - 0.8)
    chart.x_range = Range1d(-0.06 * length, 1.03 * length)
    chart.yaxis.ticker.desired_num_ticks = 8
    chart.yaxis.ticker.min_interval = 1
    series, renderers = [], []
    for state, colour in STATES.items():
        mine = [row for row in rows if row.state == state]
        if mine:
            renderers += _draw_state(chart, state, colour, mine, first, -0.03 * length)
            series.append(Series(f"state-{state}", f"{state} ({len(mine)})", colour))
    add_hover(
        chart, [("trial", "@trial"), ("config", "@config"), ("state", "@state"), ("took", "@took"),
        ("host", "@host")], *renderers,
    )  # fmt: skip
    add_tap(chart, *renderers)
    untimed = len(rows) - len(timed)
    note = f" Crosses: {untimed:,} without times in the records." if untimed else ""
    return Chart(
        "timeline", "Timeline of the trials", f"From the start of a trial to its commit; {CLICK}.{note}",
        chart, series,
    )  # fmt: skip


def _draw_state(
    chart: Any, state: str, colour: str, rows: Sequence[TrialRow], first: float, left: float
) -> list[Any]:
    look: dict[str, Any] = {"color": colour, "name": f"state-{state}"}
    timed = [row for row in rows if row.get("started") is not None and row.seconds is not None]
    rest = [row for row in rows if row not in timed]
    renderers = []
    if timed:
        columns = _timeline_columns(timed)
        columns["begin"] = [row["started"] - first for row in timed]
        columns["end"] = [row["started"] - first + (row.seconds or 0) for row in timed]
        source = source_of(columns, f"timeline-{state}")
        renderers.append(chart.hbar("trial", 0.75, "end", "begin", source=source, **look))
    if rest:
        columns = {**_timeline_columns(rest), "begin": [left] * len(rest)}
        source = source_of(columns, f"untimed-{state}")
        renderers.append(
            chart.scatter("begin", "trial", marker="x", size=8, line_width=2, source=source, **look)
        )
    return renderers


def _timeline_columns(rows: Sequence[TrialRow]) -> dict[str, list[Any]]:
    return {
        "row": [f"trial-{row.trial}" for row in rows],
        "trial": [row.trial for row in rows],
        "took": [registered()["seconds"].text(row.seconds) for row in rows],
        "config": [plain(row.config) for row in rows],
        "state": [f"{row.state}: {plain(row.reason, 90)}" if row.reason else row.state for row in rows],
        "host": [plain(row.get("host") or "") for row in rows],
    }  # fmt: skip


def _height(trials: int) -> int:
    return min(max(160 + 12 * trials, 240), 440)
