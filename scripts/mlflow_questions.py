"""Questions that users have of MLflow's records, asked by MLflow's own search.

    python scripts/mlflow_questions.py TRACKING_URI [--experiment raysae] [--below 32]

Prints the filter or call behind each answer: the best trial with L0 below a bound, explained variance
by layer of each atlas, the choices of all sweeps side by side, and the models by their figures. The exit
code is 1 when a question has no answer.
"""

import argparse
import sys
from collections.abc import Iterator
from statistics import fmean
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import ViewType

from raysae.records.mlflow_views import VIEWS

Rows = list[tuple[Any, ...]]


PARENTS = VIEWS["raysae-sweeps"].asked


class Records:
    """The records of one experiment."""

    def __init__(self, uri: str, experiment: str):
        self.client = MlflowClient(tracking_uri=uri)
        found = self.client.get_experiment_by_name(experiment)
        if found is None:
            sys.exit(f"{uri}: no experiment {experiment}")
        self.experiment = found.experiment_id

    def runs(self, asked: str, order: str = "") -> list[Any]:
        """All runs that a filter finds, in MLflow's order."""
        found, page = list[Any](), None
        while True:
            part = self.client.search_runs(
                [self.experiment],
                asked,
                ViewType.ACTIVE_ONLY,
                1000,
                [order] if order else None,
                page,
            )
            found += part
            page = part.token
            if not page:
                return found


def best_trial(records: Records, below: float) -> tuple[str, Rows]:
    """The trial with the highest explained variance whose L0 is below ``below``."""
    asked = f"tags.kind = 'trial' and metrics.l0 < {below:g} and attributes.status = 'FINISHED'"
    found = records.runs(asked, "metrics.explained_variance DESC")[:1]
    rows: Rows = [
        (one.info.run_name, one.data.params.get("sae.d_sae"), one.data.params.get("sae.k"),
         round(one.data.metrics["explained_variance"], 4), round(one.data.metrics["l0"], 2))
        for one in found
    ]  # fmt: skip
    return f"{asked}, ordered by metrics.explained_variance DESC", rows


def by_layer(records: Records) -> tuple[str, Rows]:
    """Mean explained variance of the sites of each layer, run by run."""
    rows: Rows = []
    for parent in sweeps(records):
        asked = f"tags.kind = 'site' and tags.`mlflow.parentRunId` = '{parent.info.run_id}'"
        layers: dict[str, list[float]] = {}
        for one in records.runs(asked):
            value = one.data.metrics.get("explained_variance")
            layers.setdefault(one.data.params["layer"], []).extend([] if value is None else [value])
        rows += [
            (parent.info.run_name, int(layer), len(values), round(fmean(values), 4))
            for layer, values in sorted(layers.items(), key=lambda one: int(one[0]))
            if values
        ]
    return "tags.kind = 'site' and tags.`mlflow.parentRunId` = 'ID', grouped by params.layer", rows


def side_by_side(records: Records) -> tuple[str, Rows]:
    """The choice of every sweep."""
    rows: Rows = [
        (one.info.run_name, one.data.params.get("source.model"), one.data.tags.get("raysae.choice"),
         *(round(one.data.metrics.get(name, float("nan")), 4) for name in ("explained_variance", "l0")))
        for one in sweeps(records)
    ]  # fmt: skip
    return f"{PARENTS}; in the browser: tick two runs, then Compare", rows


def models(records: Records) -> tuple[str, Rows]:
    """The chosen SAEs and the atlases, best first."""
    order = [{"field_name": "metrics.explained_variance", "ascending": False}]
    found = records.client.search_logged_models([records.experiment], order_by=order)
    rows: Rows = [
        (one.name, one.tags.get("kind"), *sorted(
            f"{metric.key} {metric.value:.4g}" for metric in one.metrics or []
            if metric.key.removeprefix("atlas_") in ("explained_variance", "l0")
        ))
        for one in found
    ]  # fmt: skip
    return "search_logged_models, ordered by metrics.explained_variance", rows


def sweeps(records: Records) -> Iterator[Any]:
    """The parents, newest first."""
    yield from records.runs(PARENTS)


def main() -> int:
    """Ask every question; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("uri", metavar="TRACKING_URI")
    parser.add_argument("--experiment", default="raysae")
    parser.add_argument("--below", type=float, default=32.0, help="the bound of L0 (32)")
    args = parser.parse_args()
    records = Records(args.uri, args.experiment)
    answers = {
        f"the best trial with L0 below {args.below:g}": best_trial(records, args.below),
        "explained variance by layer": by_layer(records),
        "sweeps side by side": side_by_side(records),
        "models by their figures": models(records),
    }
    for question, (how, rows) in answers.items():
        print(f"\n{question}\n  {how}")
        for row in rows:
            print("   ", "  ".join(map(str, row)))
    return int(not all(rows for _, rows in answers.values()))


if __name__ == "__main__":
    sys.exit(main())
