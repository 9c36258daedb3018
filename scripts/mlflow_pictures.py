"""Pictures of MLflow's own pages of a run, with Chromium.

    python scripts/mlflow_pictures.py DATABASE FOLDER

DATABASE is the SQLite file of the records, such as runs/mlflow.db. A server is started on it for the
time. Of each page there is a picture at 1,280 and at 1,600 pixels, light, and one that is dark.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import quote

from chromium import Page, chromium
from mlflow import MlflowClient
from mlflow_server import MLflowServer
from s3_server import free_port

from raysae.records.mlflow_views import VIEWS, link

SIZES = ((1280, 900, False), (1600, 1000, False), (1280, 900, True))
DARK = "localStorage.setItem('_mlflow_dark_mode_toggle_enabled', '%s')"
CLOSE = """[...document.querySelectorAll("button")].filter((one) =>
  /^close/i.test(one.ariaLabel ?? "")).forEach((one) => one.click())"""
SETTLES = 3.0
"""Seconds for charts to be drawn."""


def pages_of(url: str, name: str) -> dict[str, tuple[str, str]]:
    """Each page's address, and a text that it shows once it is there."""
    client = MlflowClient(url)
    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        raise SystemExit(f"no experiment {name}")
    here, as_training = f"#/experiments/{experiment.experiment_id}", "workflowType=machine_learning"
    runs = {
        kind: found(client, experiment.experiment_id, kind) for kind in ("sweep", "trial", "site")
    }
    sweep = runs["sweep"][0].info
    chosen = [one.info.run_id for one in runs["trial"][:4]]
    compared = f"runs={quote(json.dumps(chosen))}&experiments={quote(json.dumps([here[14:]]))}"
    pages = {
        "experiments": (f"#/experiments?{as_training}", name),
        "experiment": (f"{here}/runs?{as_training}", sweep.run_name),
        "compare": (f"#/compare-runs?{compared}&{as_training}", "explained_variance"),
        "sweep": (
            f"{here}/runs/{runs['sweep'][0].info.run_id}?{as_training}",
            runs["sweep"][0].info.run_name,
        ),
        "trial": (f"{here}/runs/{chosen[0]}?{as_training}", "explained_variance"),
        "trial-metrics": (
            f"{here}/runs/{chosen[0]}/model-metrics?{as_training}",
            "explained_variance",
        ),
        "models": (f"{here}/models?{as_training}", "sweet spot"),
    }
    for key, view in VIEWS.items():
        pages[key] = (link(experiment.experiment_id, key), view.title)
    return pages


def found(client: MlflowClient, experiment: str, kind: str) -> list[Any]:
    """The runs of a kind, best first."""
    order = ["metrics.explained_variance DESC"]
    return list(client.search_runs([experiment], f"tags.kind = '{kind}'", order_by=order))


def take(page: Page, url: str, pages: dict[str, tuple[str, str]], folder: Path) -> list[str]:
    """Take the pictures; the names of the pages that did not show what they should."""
    missing = []
    page.open(url)
    for width, height, dark in SIZES:
        page.size(width, height, dark)
        page.value(DARK % str(dark).lower())
        for name, (place, text) in pages.items():
            page.open(f"{url}/{place}")
            try:
                page.wait(f"document.body.innerText.includes({json.dumps(text)})")
            except AssertionError:
                missing.append(name)
            page.value(CLOSE)  # MLflow's assistant, which is open at first
            time.sleep(SETTLES)
            page.picture(folder / f"{name}-{width}{'-dark' if dark else ''}.png")
    return missing


def main() -> int:
    """Take the pictures that the command line asks for; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("database", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--experiment", default="raysae")
    parser.add_argument("--only", nargs="*", help="pages, all without it")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory() as temporary:
        server = MLflowServer(Path(temporary), free_port(), args.database).start()
        try:
            pages = pages_of(server.uri, args.experiment)
            wanted = {name: pages[name] for name in args.only or pages}
            with chromium(Path(temporary) / "profile") as page:
                missing = take(page, server.uri, wanted, args.folder)
        finally:
            server.kill()
    print(f"{len(wanted)} pages, {len(set(missing))} without what they should show: {missing}")
    return int(bool(missing))


if __name__ == "__main__":
    sys.exit(main())
