"""Training curves of trials or sites, with a legend that isolates one, and the law of scaling."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from bokeh.models import ColumnDataSource, Range1d

from raysae.metrics import registered
from raysae.report.atlas_rows import Row
from raysae.report.charts.style import (
    CHOSEN,
    Chart,
    Series,
    add_hover,
    around,
    doublings,
    look_of,
    new_chart,
    plain,
    tokens_axis,
)
from raysae.report.charts.trial_data import axis_of
from raysae.report.site_curves import Curve, curve_limits, curve_values, rule_of

EV = "explained_variance"
ISOLATES = "A click in the legend isolates one, a second click shows all."


def curves_chart(
    name: str, curves: Sequence[Curve], there: int, what: str, file: str
) -> Chart | None:
    """Explained variance over training tokens, a line a curve, of ``there`` trials or sites in all.

    None where no curve has a record.
    """
    curves = [curve for curve in curves if curve.history]
    if not curves:
        return None
    chart = new_chart("training tokens", axis_of(EV), 380)
    tokens_axis(chart.xaxis[0])
    chart.y_range = Range1d(*curve_limits(curves))
    series, renderers = [], []
    for number, curve in enumerate(curves):
        renderers += _draw(chart, f"{name}-{number}", *look_of(number), curve)
        colour, dash = look_of(number)
        series.append(Series(f"{name}-{number}", plain(curve.name), colour, dash))
    hover = [(what, "@name"), ("tokens", "@tokens{0,0}"), ("explained variance", "@ev{0.0000}")]
    add_hover(chart, hover, *renderers)
    shown = rule_of(len(curves), there, f"{what}s")
    return Chart(
        name, f"Training curves of the {what}s", f"{shown[:1].upper()}{shown[1:]}. {ISOLATES}",
        chart, series, wide=True, file=file,
    )  # fmt: skip


def _draw(chart: Any, key: str, colour: str, dash: str, curve: Curve) -> list[Any]:
    tokens = np.array([row["tokens"] for row in curve.history], float)
    source = ColumnDataSource(
        {"tokens": tokens, "ev": curve_values(curve), "name": [plain(curve.name)] * len(tokens)}
    )
    look: dict[str, Any] = {"source": source, "color": colour, "name": key}
    line = chart.line("tokens", "ev", line_width=2, line_dash=dash, **look)
    return [line, chart.scatter("tokens", "ev", size=4, **look)]


def scaling_chart(scaling: Mapping[str, Any]) -> Chart | None:
    """The unexplained variance against d_sae, a line and a band for each K; None without trials."""
    points = scaling.get("points") or []
    if not points:
        return None
    fvus = [one["fvu"] for one in points]
    chart = new_chart(
        "d_sae (latents)", registered()["fvu"].axis or "unexplained variance (FVU, validation)", 380,
        x_axis_type="log", y_axis_type="log", y_range=around(fvus, True, 0.1),
    )  # fmt: skip
    doublings(chart.xaxis[0])
    ks, series, renderers = sorted({one["k"] for one in points}), [], []
    for number, k in enumerate(ks):
        colour, dash = look_of(number)
        renderers.append(_draw_points(chart, [one for one in points if one["k"] == k], colour, k))
        for law in scaling.get("curves", []):
            if law["k"] == k:
                look: dict[str, Any] = {"color": colour, "name": f"k-{k}"}
                chart.line(law["d_sae"], law["fvu"], line_dash=dash, line_width=1.5, **look)
                chart.varea(law["d_sae"], law["low"], law["high"], fill_alpha=0.15, **look)
        series.append(Series(f"k-{k}", f"K {k}", colour, dash))
    check = scaling.get("check")
    if check:
        foretold = [check["d_sae"]] * len(check["k"])
        chart.scatter(foretold, check["foretold"], marker="x", size=10, color=CHOSEN, line_width=2)
    add_hover(
        chart, [("d_sae", "@d_sae"), ("K", "@k"), ("unexplained", "@fvu{0.0000}")], *renderers
    )
    crosses = f" Crosses: foretold without d_sae {check['d_sae']}." if check else ""
    bands = " Bands are 90% intervals of the law." if scaling.get("curves") else ""
    return Chart(
        "scaling", "Unexplained variance by dictionary size",
        f"Each point is a trial.{bands}{crosses} {ISOLATES}", chart, series, wide=True, file="scaling",
    )  # fmt: skip


def _draw_points(chart: Any, points: Sequence[Row], colour: str, k: int) -> Any:
    columns = {name: [one[name] for one in points] for name in ("d_sae", "k", "fvu")}
    return chart.scatter(
        "d_sae", "fvu", source=ColumnDataSource(columns), size=9, color=colour, name=f"k-{k}"
    )
