"""The interactive charts of a run's page, by its sections."""

from collections.abc import Mapping, Sequence
from typing import Any

from raysae.records.folder import RunFolder
from raysae.records.rows import SiteRow, TrialRow
from raysae.report.atlas_rows import by_hookpoint
from raysae.report.atlas_section import (
    chart_files,
    chart_key,
    chart_titles,
    site_curves_of,
    site_ids,
)
from raysae.report.controls_section import ControlsSection
from raysae.report.importance import Importance
from raysae.report.site_curves import Curve

Groups = dict[str, list[Any]]
"""Charts by section: ``sweep``, ``choice``, ``controls``, ``scaling``, ``atlas`` and ``resources``."""


def sweep_charts(
    trials: Sequence[TrialRow], measured: Sequence[TrialRow], curves: Sequence[Curve],
    searched: Sequence[str], selection: Mapping[str, Any], importance: Importance,
) -> Groups:  # fmt: skip
    """The charts of a search; ``measured`` are the trials with figures and ``curves`` theirs."""
    from raysae.report.charts import curves as lines
    from raysae.report.charts import search
    from raysae.report.charts import trials as outcomes
    from raysae.report.charts.trial_data import TrialData

    found: list[Any] = [search.timeline_chart(trials)]
    choice: list[Any] = []
    if measured:
        data = TrialData(measured, searched, selection["choice"]["trial"])
        front = selection.get("pareto", {}).get("front") or []
        choice = [outcomes.grid_chart(data, selection["choice"])]
        found = [
            outcomes.front_chart(data, front),
            *found,
            search.parallel_chart(data),
            *([search.importance_chart(importance.shares)] if importance.shares else []),
            *search.slice_charts(data),
            lines.curves_chart("trials", curves, len(measured), "trial", "training_curves"),
        ]
    return {"sweep": _there(found), "choice": _there(choice)}


def other_charts(
    controls: ControlsSection, scaling: Mapping[str, Any], times: Mapping[str, float]
) -> Groups:
    """The charts of the controls, of the law of scaling and of the time by stage."""
    from raysae.report.charts.bars import controls_chart, stages_chart
    from raysae.report.charts.curves import scaling_chart

    return {
        "controls": _there([controls_chart(controls.amounts)]),
        "scaling": _there([scaling_chart(scaling)]),
        "resources": _there([stages_chart(times)]),
    }


def atlas_charts(run: RunFolder, rows: Sequence[SiteRow]) -> Groups:
    """The charts of an atlas, those of each hookpoint after the other's."""
    from raysae.report.charts.atlas import heatmap_charts
    from raysae.report.charts.curves import curves_chart

    ids, found = site_ids(rows), list[Any]()
    for hookpoint, there in by_hookpoint(rows).items():
        key = chart_key(hookpoint)
        titles, files = chart_titles(there, hookpoint), chart_files(there, hookpoint)
        found += heatmap_charts(there, ids, titles, files, key)
        curves, number = site_curves_of(run, there)
        file = files["curves"]
        found.append(curves_chart(f"sites-{key}", curves, number, "site", file))
    return {"atlas": _there(found)}


def _there(charts: Sequence[Any]) -> list[Any]:
    return [chart for chart in charts if chart is not None]
