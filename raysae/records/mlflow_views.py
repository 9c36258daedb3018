"""Saved views of MLflow's experiment page: filters, columns and charts, as tags of the experiment.

They are what the page's own "Share" button saves, so that a link with ``viewStateShareKey`` opens them.
The form is that of MLflow 3; another version gets none.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

SHARED = "mlflow.sharedViewState."
"""How the tags of saved views begin; the rest is the view's key."""
MAJOR = "3"
LONGEST_TAG = 5000
"""Characters of a tag, at most."""
EV, L0, DEAD = "explained_variance", "l0", "dead_fraction"
METRIC, PARAM = "METRIC", "PARAM"


@dataclass(frozen=True)
class View:
    """A view: which runs, in which order, with which columns and charts."""

    title: str
    asked: str
    """The filter of the runs."""
    columns: Sequence[str]
    charts: Sequence[Mapping[str, Any]]

    def state(self) -> dict[str, Any]:
        """The view as MLflow's page keeps it."""
        charts = [
            {
                "uuid": f"raysae-{number}", "metricSectionId": "raysae", "deleted": False,
                "isGenerated": False, "runsCountToCompare": 100, **chart,
            }
            for number, chart in enumerate(self.charts)
        ]  # fmt: skip
        section = {"uuid": "raysae", "name": self.title, "display": True, "isReordered": False}
        return {
            "searchFilter": self.asked, "orderByKey": f"metrics.`{EV}`", "orderByAsc": False,
            "selectedColumns": list(self.columns), "compareRunCharts": charts,
            "compareRunSections": [section], "isAccordionReordered": True, "runsHiddenMode": "SHOW_ALL",
        }  # fmt: skip


def _scatter(x: str, y: str, kind: str = METRIC) -> dict[str, Any]:
    """A chart of one figure against another, or against a parameter."""
    axes = {"xaxis": {"key": x, "type": kind}, "yaxis": {"key": y, "type": METRIC}}
    return {"type": "SCATTER", **axes}


def _parallel(params: Sequence[str], metrics: Sequence[str]) -> dict[str, Any]:
    """Parallel coordinates, a line a run."""
    chosen = {"selectedParams": list(params), "selectedMetrics": list(metrics)}
    return {"type": "PARALLEL", **chosen, "showAllRuns": True}


def _bar(metric: str) -> dict[str, Any]:
    """A bar a run."""
    return {"type": "BAR", "metricKey": metric}


def _columns(params: Sequence[str], metrics: Sequence[str] = (EV, L0, DEAD)) -> list[str]:
    return [
        *(f"params.`{name}`" for name in params),
        *(f"metrics.`{name}`" for name in metrics),
    ]


SIZE = ("sae.d_sae", "sae.k")
VIEWS: Mapping[str, View] = {
    "raysae-trials": View(
        "Trials", "tags.kind = 'trial'", _columns(["sae.variant", *SIZE]),
        [_scatter(L0, EV), _scatter("sae.d_sae", EV, PARAM), _scatter(L0, DEAD),
         _parallel(SIZE, [L0, EV])],
    ),
    "raysae-sites": View(
        "Sites of the atlas", "tags.kind = 'site'", _columns(["layer", "position", *SIZE]),
        [_scatter("layer", EV, PARAM), _scatter("layer", L0, PARAM), _scatter("position", EV, PARAM),
         _scatter("layer", DEAD, PARAM)],
    ),
    "raysae-sweeps": View(
        "Sweeps", "tags.kind != 'trial' and tags.kind != 'site'", _columns(["source.model"], (EV, L0)),
        [_bar(EV), _bar(L0), _scatter(L0, EV)],
    ),
}  # fmt: skip
"""The views by key."""


def view_tags(version: str) -> dict[str, str]:
    """The tags that hold the views, for an MLflow of this version; none for one that has another form."""
    if version.partition(".")[0] != MAJOR:
        return {}
    tags = {f"{SHARED}{key}": json.dumps(view.state()) for key, view in VIEWS.items()}
    return {key: text for key, text in tags.items() if len(text) <= LONGEST_TAG}


def link(experiment: str, key: str) -> str:
    """A view's address below that of MLflow, which without the last part opens its GenAI pages."""
    return (
        f"#/experiments/{experiment}/runs?viewStateShareKey={key}&compareRunsMode=CHART"
        "&workflowType=machine_learning"
    )


def links(experiment: str) -> str:
    """Where the views are, as Markdown for a description that MLflow shows."""
    return " · ".join(f"[{view.title}]({link(experiment, key)})" for key, view in VIEWS.items())
