"""The charts that compare runs: their trials, their atlases by layer, and two atlases site by site."""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from bokeh.models import ColumnDataSource

from raysae.records.rows import SiteRow, TrialRow
from raysae.report.charts.style import (
    LINE,
    QUIET,
    Chart,
    Series,
    add_hover,
    around,
    doublings,
    look_of,
    new_chart,
    plain,
    source_of,
)
from raysae.report.charts.trial_data import axis_of

EV = "explained_variance"
MARKERS = ("circle", "square", "triangle", "diamond", "inverted_triangle", "hex", "star")


def isolates(what: str) -> str:
    """What the legend does."""
    return f"A click in the legend isolates a {what}, a second click shows all."


def trials_of_runs(
    trials: Mapping[str, Sequence[TrialRow]], chosen: Mapping[str, int | None], what: str = "run"
) -> Chart | None:
    """Explained variance against L0 of the measured trials of each ``what``; the choices have rings."""
    trials = {name: rows for name, rows in trials.items() if rows}
    if not trials:
        return None
    everywhere = [row for rows in trials.values() for row in rows]
    chart = new_chart(
        axis_of("l0"), axis_of(EV), 400, x_axis_type="log",
        x_range=around([row.l0 for row in everywhere], True),
        y_range=around([row.explained_variance for row in everywhere]),
    )  # fmt: skip
    doublings(chart.xaxis[0])
    series, renderers = [], []
    for number, (name, rows) in enumerate(trials.items()):
        colour, _ = look_of(number)
        key = f"run-trials-{number}"
        look: dict[str, Any] = {"color": colour, "name": key}
        marker = MARKERS[number % len(MARKERS)]
        source = _trials_source(name, rows)
        renderers.append(chart.scatter("l0", EV, source=source, marker=marker, size=10, **look))
        for row in rows:
            if row.trial == chosen[name]:
                ring: dict[str, Any] = {"fill_color": None, "line_width": 2.5, "size": 20}
                chart.scatter([row.l0], [row.explained_variance], **ring, **look)
        series.append(Series(key, plain(name), colour))
    add_hover(
        chart, [(what, "@run"), ("trial", "@trial"), ("config", "@config"), ("EV", "@ev_text"),
        ("L0", "@l0_text")], *renderers,
    )  # fmt: skip
    return Chart(
        "run-trials", f"Trials of each {what}", f"The choices have rings. {isolates(what)}", chart,
        series, wide=True,
    )  # fmt: skip


def _trials_source(name: str, rows: Sequence[TrialRow]) -> ColumnDataSource:
    columns: dict[str, Any] = {
        "run": [plain(name)] * len(rows), "trial": [row.trial for row in rows],
        "config": [plain(row.config) for row in rows], "l0": [row.l0 for row in rows],
        EV: [row.explained_variance for row in rows],
        "ev_text": [f"{row.explained_variance:.4f}" for row in rows],
        "l0_text": [f"{row.l0:.2f}" for row in rows],
    }  # fmt: skip
    return source_of(columns, "run-trials")


def atlases_of_runs(
    atlases: Mapping[str, Sequence[SiteRow]], depths: Mapping[str, int | None] | None = None,
    what: str = "run",
) -> Chart | None:  # fmt: skip
    """Explained variance over layers: the mean over positions of each ``what``; a band is their range.

    ``depths`` are the models' numbers of layers; if all are known, the axis shows the layer divided by
    that number.
    """
    atlases = {name: rows for name, rows in atlases.items() if rows}
    if not atlases or len({row.layer for rows in atlases.values() for row in rows}) < 2:
        return None
    known = depths if depths and all(depths[name] for name in atlases) else {}
    axis = "depth (layer / number of layers)" if known else "layer"
    chart = new_chart(axis, axis_of(EV), 400)
    chart.xaxis.ticker.desired_num_ticks = 8
    chart.xaxis.ticker.min_interval = 0 if known else 1
    series, renderers = [], []
    for number, (name, rows) in enumerate(atlases.items()):
        colour, dash = look_of(number)
        key = f"run-atlas-{number}"
        source = _layers_source(name, rows, known.get(name) or 1)
        look: dict[str, Any] = {"source": source, "color": colour, "name": key}
        chart.varea("at", "low", "high", fill_alpha=0.12, **look)
        renderers.append(chart.line("at", "mean", line_width=2, line_dash=dash, **look))
        renderers.append(chart.scatter("at", "mean", size=6, **look))
        series.append(Series(key, plain(name), colour, dash))
    add_hover(
        chart, [(what, "@run"), ("layer", "@layer"), ("mean EV", "@mean{0.0000}"),
        ("lowest", "@low{0.0000}"), ("highest", "@high{0.0000}")], *renderers,
    )  # fmt: skip
    return Chart(
        "run-atlases", "Atlases by layer",
        f"Means over positions; a band is their range. {isolates(what)}", chart, series, wide=True,
    )  # fmt: skip


def _layers_source(name: str, rows: Sequence[SiteRow], depth: int) -> ColumnDataSource:
    layers = sorted({row.layer for row in rows})
    values = [[row.explained_variance for row in rows if row.layer == layer] for layer in layers]
    columns: dict[str, Any] = {
        "run": [plain(name)] * len(layers), "layer": layers,
        "at": [layer / depth for layer in layers], "mean": list(map(fmean, values)),
        "low": list(map(min, values)), "high": list(map(max, values)),
    }  # fmt: skip
    return source_of(columns, "run-layers")


def sites_of_two(atlases: Mapping[str, Sequence[SiteRow]]) -> Chart | None:
    """Explained variance at each site that two runs share, one against the other."""
    if len(atlases) != 2:
        return None
    (one, first), (other, second) = atlases.items()
    there = {(row.hookpoint, row.layer, str(row.position)): row for row in second}
    pairs = [
        (row, there[key])
        for row in first
        if (key := (row.hookpoint, row.layer, str(row.position))) in there
    ]
    if len(pairs) < 2:
        return None
    xs, ys = ([pair[n].explained_variance for pair in pairs] for n in (0, 1))
    ends = around([*xs, *ys])
    chart = new_chart(
        f"EV of {plain(one, 24)}", f"EV of {plain(other, 24)}", 400, x_range=ends, y_range=ends
    )
    chart.line([ends.start, ends.end], [ends.start, ends.end], color=QUIET, line_dash="dashed")
    columns: dict[str, Any] = {
        "x": xs, "y": ys, "site": [plain(row.site) for row, _ in pairs],
        "text": [f"{x:.4f} and {y:.4f}" for x, y in zip(xs, ys, strict=True)],
    }  # fmt: skip
    source = source_of(columns, "run-sites")
    points = chart.scatter("x", "y", source=source, size=9, color=LINE, alpha=0.75)
    add_hover(chart, [("site", "@site"), ("EV", "@text")], points)
    return Chart(
        "run-sites", "Explained variance site by site",
        f"{len(pairs):,} sites that both have; on the dashed line they are equal.", chart,
    )  # fmt: skip
