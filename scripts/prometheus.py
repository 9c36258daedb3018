"""Does every query of the Grafana dashboard get an answer? A real Prometheus watches a real sweep.

    apt-get install prometheus
    python scripts/prometheus.py [--seconds 600] [--epochs 250]

The sweep reads by scans, so that Ray Data and raysae's scans have figures too, for long enough that
Prometheus sees each scan twice: else there is no rate. Queries about GPUs are
expected to have no answer on a machine without one. The exit code is 1 when another one had none, or the
sweep failed.
"""

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from s3_server import free_port

ROOT = Path(__file__).resolve().parents[1]
DASHBOARD = ROOT / "dashboards/grafana/dashboards/raysae.json"
START = ROOT / "dashboards/prometheus.sh"
TOLD = re.compile(r"dashboard (http://[\w.:]+)")
LOOKS = 5.0
"""Seconds between two looks."""


def queries() -> dict[str, str]:
    """Each query of the dashboard, with its panel's title; all runs are chosen."""
    panels = json.loads(DASHBOARD.read_text())["panels"]
    return {
        target["expr"].replace("$study", ".*"): panel["title"]
        for panel in panels
        for target in panel.get("targets", [])
    }


def answer(port: int, query: str) -> int:
    """The series that Prometheus has for a query now."""
    text = urllib.parse.urlencode({"query": query})
    url = f"http://127.0.0.1:{port}/api/v1/query?{text}"
    with urllib.request.urlopen(url, timeout=20) as reply:
        return len(json.load(reply)["data"]["result"])


def started(port: int, dashboard: str) -> subprocess.Popen[bytes]:
    """A Prometheus as users start it, in a process group of its own."""
    named = {"PROMETHEUS_ADDRESS": f"127.0.0.1:{port}", "RAY_DASHBOARD": dashboard}
    return subprocess.Popen(
        [str(START)], env={**os.environ, **named}, start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip


def sweep(folder: Path, epochs: int) -> subprocess.Popen[str]:
    """A sweep of eight trials and an atlas on the pocket GPT-2, with Ray's dashboard."""
    words = [
        "name=watched", f"runs_dir={folder / 'runs'}", f"store={folder / 'store'}",
        "records.mlflow=false", "resources.dashboard=true", "resources.reading=scan",
        "resources.cpus=4", f"training.epochs={epochs}", "sweep.trials=8", "analyze.phases=[]",
    ]  # fmt: skip
    return subprocess.Popen(
        [sys.executable, "-m", "raysae.sweep", *words], text=True,
        stdout=(folder / "said").open("w"), stderr=subprocess.STDOUT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "RAY_worker_niceness": "0"},
    )  # fmt: skip


def dashboard_of(run: subprocess.Popen[str], folder: Path, until: float) -> str:
    """The address that the sweep prints. Raises RuntimeError when it prints none in time."""
    while run.poll() is None and time.monotonic() < until:
        found = TOLD.search((folder / "said").read_text())
        if found is not None:
            return found[1]
        time.sleep(1.0)
    raise RuntimeError(f"no dashboard: {(folder / 'said').read_text()[-2000:]}")


@contextmanager
def prometheus_of(port: int, dashboard: str) -> Iterator[None]:
    """A Prometheus that runs during the block."""
    process = started(port, dashboard)
    try:
        while process.poll() is None:
            with suppress(OSError):
                answer(port, "up")
                break
            time.sleep(0.5)
        yield
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        process.wait(30)


def watch(folder: Path, seconds: float, epochs: int) -> tuple[dict[str, int], int | None]:
    """The most series of each query during a sweep, and its exit code; None when it took too long."""
    most, port = dict.fromkeys(queries(), 0), free_port()
    run, until = sweep(folder, epochs), time.monotonic() + seconds
    try:
        with prometheus_of(port, dashboard_of(run, folder, until)):
            while run.poll() is None and time.monotonic() < until:
                time.sleep(LOOKS)
                for query in most:
                    most[query] = max(most[query], answer(port, query))
        return most, run.poll()
    finally:
        if run.poll() is None:
            run.terminate()
            run.wait(60)


def main() -> int:
    """Print each query with its series; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=600.0, help="the longest time (600)")
    parser.add_argument(
        "--epochs", type=int, default=250, help="of each trial: a rate needs two looks"
    )
    args = parser.parse_args()
    if shutil.which("prometheus") is None:
        print("error: no prometheus here: apt-get install prometheus", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        most, code = watch(folder, args.seconds, args.epochs)
        said = (folder / "said").read_text()
    titles = queries()
    for query, series in most.items():
        print(f"{series:5} series  {titles[query]:36} {query}")
    silent = [query for query, series in most.items() if not series and "gpu" not in query.lower()]
    silent = [query for query in silent if "gram" not in query]
    print(f"{len(most)} queries, {len(silent)} without an answer (GPUs aside); the sweep: {code}")
    if code:
        print(said[-2000:], file=sys.stderr)
    return int(bool(silent) or code != 0)


if __name__ == "__main__":
    sys.exit(main())
