"""The charts of a sweep's outcome: the front, and K against d_sae with what the indicators say."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from bokeh.models import BoxAnnotation, Span

from raysae.report.charts.style import (
    CHOSEN,
    QUIET,
    Chart,
    add_colour_bar,
    add_hover,
    add_tap,
    around,
    colours,
    doublings,
    new_chart,
    ring,
)
from raysae.report.charts.trial_data import TrialData, axis_of

EV = "explained_variance"
CLICK = "a click goes to the trial's row"


def front_chart(data: TrialData, front: Sequence[int]) -> Chart:
    """Explained variance against L0, coloured by d_sae; ``front`` are the trials that no other beats."""
    l0s, evs = data.values("l0"), data.values(EV)
    chart = new_chart(
        axis_of("l0"),
        axis_of(EV),
        x_axis_type="log",
        x_range=around(l0s, True),
        y_range=around(evs),
    )
    doublings(chart.xaxis[0])
    best = sorted((row.l0, row.explained_variance) for row in data.rows if row.trial in front)
    if len(best) > 1:
        chart.line(*map(list, zip(*best, strict=True)), color=QUIET, line_width=1.5)
    sizes = [float(row.d_sae) for row in data.rows]
    mapper = colours(sizes, ends=(min(sizes), max(sizes), True))
    points = chart.scatter(
        "l0", EV, source=data.source, size=10, alpha=0.9, line_color=QUIET,
        fill_color={"field": _column_of(data, "sae.d_sae"), "transform": mapper},
    )  # fmt: skip
    add_colour_bar(chart, mapper, doubling=True)
    chosen = _ring_choice(chart, data, "l0", EV)
    add_hover(chart, data.tooltips, points)
    add_tap(chart, points)
    line = " The line joins the trials that no other beats in both." if len(best) > 1 else ""
    return Chart(
        "front", "Explained variance against L0",
        f"Each point is a trial, coloured by d_sae; {CLICK}.{chosen}{line}", chart,
        file="ev_against_l0",
    )  # fmt: skip


def grid_chart(data: TrialData, choice: Mapping[str, Any]) -> Chart | None:
    """K against d_sae, coloured by explained variance, with the interval of the choice and the values
    that the indicators name; None where the trials have no K or only one config."""
    ks, sizes = data.values("sae.k"), data.values("sae.d_sae")
    places = {both for both in zip(ks, sizes, strict=True) if all(map(math.isfinite, both))}
    if len(places) < 2:
        return None
    chart = new_chart(
        "K (active latents)", "d_sae (latents)", x_axis_type="log", y_axis_type="log",
        x_range=around(ks, True, 0.1), y_range=around(sizes, True, 0.1),
    )  # fmt: skip
    for axis in chart.axis:
        doublings(axis)
    named = _draw_interval(chart, choice) + _draw_indicators(chart, choice)
    mapper = colours(data.values(EV))
    points = chart.scatter(
        _column_of(data, "sae.k"), _column_of(data, "sae.d_sae"), source=data.source, size=16,
        line_color=QUIET, fill_color={"field": EV, "transform": mapper},
    )  # fmt: skip
    add_colour_bar(chart, mapper)
    chosen = _ring_choice(chart, data, "sae.k", "sae.d_sae")
    add_hover(chart, data.tooltips, points)
    add_tap(chart, points)
    return Chart(
        "grid", "K against d_sae",
        f"Each point is a trial, coloured by explained variance.{chosen}{named}", chart,
    )  # fmt: skip


def _draw_interval(chart: Any, choice: Mapping[str, Any]) -> str:
    """Draw the interval of the choice; returns what to say of it."""
    interval = choice.get("interval") or {}
    if not {"sae.k", "sae.d_sae"} <= interval.keys():
        return ""
    (left, right), (bottom, top) = interval["sae.k"], interval["sae.d_sae"]
    chart.add_layout(
        BoxAnnotation(
            left=left / 1.12, right=None if right is None else right * 1.12, bottom=bottom / 1.12,
            top=None if top is None else top * 1.12, fill_color=CHOSEN, fill_alpha=0.1,
            line_color=CHOSEN, line_dash="dashed",
        )
    )  # fmt: skip
    return " The box is the interval of the choice."


def _draw_indicators(chart: Any, choice: Mapping[str, Any]) -> str:
    values = {
        (one["of"], one["value"])
        for one in choice.get("indicators") or ()
        if one.get("value") is not None and one.get("of") in ("sae.k", "sae.d_sae")
    }
    for key, value in values:
        chart.add_layout(
            Span(
                location=value, dimension="height" if key == "sae.k" else "width",
                line_color=CHOSEN, line_dash="dotted", line_width=1.5,
            )
        )  # fmt: skip
    return (
        " Dotted lines are the values that indicators name; the table has them." if values else ""
    )


def _ring_choice(chart: Any, data: TrialData, x: str, y: str) -> str:
    """Draw a ring around the choice; returns what to say of it."""
    row = data.chosen_row
    if row is None or not isinstance(row.get(x), int | float):
        return ""
    ring(chart, row[x], row[y])
    return f" The ring is the choice, trial {row.trial}."


def _column_of(data: TrialData, key: str) -> str:
    """The column of a setting, which is added where it was not searched."""
    if key in data.searched:
        return f"s{data.searched.index(key)}"
    name = key.replace(".", "_")
    if name not in data.source.data:
        data.source.data[name] = data.values(key)
    return name
