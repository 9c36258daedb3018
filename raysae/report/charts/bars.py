"""Charts of a few named amounts: the controls beside the choice, and the time of the stages."""

from collections.abc import Mapping, Sequence
from typing import Any

from bokeh.models import Range1d

from raysae.console.board import seconds
from raysae.report.charts.style import (
    CHOSEN,
    LINE,
    Chart,
    add_hover,
    names_axis,
    new_chart,
    plain,
    source_of,
)
from raysae.report.charts.trial_data import axis_of


def controls_chart(amounts: Mapping[str, float]) -> Chart | None:
    """The explained variance of the SAE, the first of ``amounts``, beside its controls'."""
    if len(amounts) < 2:
        return None
    texts = [f"{value:.4f}" for value in amounts.values()]
    paints = [CHOSEN, *[LINE] * (len(amounts) - 1)]
    low = min(0.0, *amounts.values())
    chart = _bars(amounts, texts, paints, axis_of("explained_variance"), "", Range1d(low, 1.0))
    return Chart(
        "controls", "Explained variance of the choice and its controls",
        "The SAE is red.", chart, wide=True,
    )  # fmt: skip


def stages_chart(times: Mapping[str, float]) -> Chart | None:
    """The time of each stage that has ended."""
    if not times:
        return None
    chart = _bars(
        times, list(map(seconds, times.values())), [LINE] * len(times), "time (seconds)", "stage",
        Range1d(0, max(times.values()) * 1.05 or 1.0),
    )  # fmt: skip
    return Chart("stages", "Time by stage", "From the start of a stage to its end.", chart)


def _bars(
    amounts: Mapping[str, float], texts: Sequence[str], paints: Sequence[str], x: str, y: str,
    x_range: Range1d,
) -> Any:  # fmt: skip
    names = list(amounts)
    chart = new_chart(
        x, y, 100 + 30 * len(names), x_range=x_range, y_range=Range1d(len(names) - 0.4, -0.6)
    )
    names_axis(chart.yaxis[0], names, 40)
    columns = {
        "y": range(len(names)), "value": list(amounts.values()), "text": texts, "colour": paints,
        "name": [plain(name) for name in names],
    }  # fmt: skip
    source = source_of(columns, "bars")
    bars = chart.hbar("y", 0.62, "value", source=source, color="colour")
    add_hover(chart, [("", "@name"), ("", "@text")], bars)
    return chart
