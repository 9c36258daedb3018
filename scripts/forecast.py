"""The dry run's forecast beside what runs took, stage by stage; run it on a quiet machine.

``python scripts/forecast.py [CASE ...]`` runs each case dry and then for real, in a temporary folder. It
prints forecast / actual of each stage, and for each stage the overhead (in starts of a worker) with
which its forecast would have been right: the means of these belong into
``raysae.pipeline.forecast.Overheads``.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from raysae.activations.synthetic import SuperpositionWorld, write_synthetic_store
from raysae.pipeline.forecast import OVERHEADS
from raysae.storage.files import read_json

CASES = {
    "quickstart": [],
    "many short trials": ["sweep.trials=24", "training.epochs=4", "training.evaluations=2"],
    "few long trials": ["sweep.trials=4", "training.epochs=200", "atlas.layers=[1]"],
    "no atlas": ["atlas.enabled=false", "sweep.trials=12"],
    "two seeds": ["sweep.seeds_per_trial=2", "atlas.positions=[-1]"],
    "wide": [
        "source=null", "store=../world", "sweep.trials=6", "training.epochs=3",
        "training.batch_size=1024",
        "sweep.space={sae.d_sae: {choices: [512, 1024]}, sae.k: {choices: [8, 16, 32]}}",
    ],
}  # fmt: skip
STAGES = ("start", "extract", "sweep", "controls", "atlas", "report")
WITHIN = 1 / 3
"""How far a forecast may lie from what it forecasts."""


def main() -> int:
    """Run the cases; the exit code says whether every forecast was within a third."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"of {', '.join(CASES)}")
    parser.add_argument("--json", type=Path, help="a file for the figures")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        world = SuperpositionWorld(d_in=256, atoms=512)
        write_synthetic_store(Path(folder) / "world", world, 20_000)
        rows = {name: measured(name, Path(folder)) for name in args.cases or CASES}
    show(rows)
    if args.json:
        args.json.write_text(json.dumps(rows, indent=2))
    ratios = [row["forecast"][s] / row["actual"][s] for row in rows.values() for s in row["actual"]]
    return int(any(abs(ratio - 1) > WITHIN for ratio in ratios))


def measured(name: str, folder: Path) -> dict:
    """Forecast and actual seconds of a case, and the start of a worker that the forecast measured."""
    place = folder / name.replace(" ", "-")
    place.mkdir()
    given = ["name=case", *CASES[name]]
    if name != "quickstart" and "source=null" not in given:  # one case forecasts its extraction
        extract = [sys.executable, "-m", "raysae.extract", "name=case"]
        subprocess.run(extract, cwd=place, check=True, capture_output=True)
    dry, _ = events([*given, "--dry-run"], place)
    told = next(event for event in dry if event["event"] == "forecast")
    _, (began, ended) = events(given, place)
    stages = read_json(place / "runs" / "case" / "status.json")["stages"]

    def took(stage: str) -> float:
        return stages[stage]["ended"] - stages[stage]["started"]

    report = took("select") + took("report") + ended - stages["report"]["ended"]
    actual = {
        "start": stages["extract"]["started"] - began, "extract": took("extract"),
        "sweep": took("sweep"), "controls": took("controls"), "atlas": took("atlas"), "report": report,
    }  # fmt: skip
    actual = {stage: seconds for stage, seconds in actual.items() if told[stage]}
    return {
        "forecast": {stage: told[stage] or 0.0 for stage in STAGES}, "actual": actual,
        "worker_start": told["worker_start"], "warm_up": told["warm_up"],
    }  # fmt: skip


def events(arguments: list[str], place: Path) -> tuple[list[dict], tuple[float, float]]:
    """The JSON events of a sweep command, and when it began and ended."""
    began = time.time()
    command = [sys.executable, "-m", "raysae.sweep", *arguments, "--log", "json"]
    done = subprocess.run(command, cwd=place, capture_output=True, text=True, check=False)
    ended = time.time()
    if done.returncode:
        raise SystemExit(f"{' '.join(arguments)}: exit code {done.returncode}\n{done.stderr}")
    lines = [line for line in done.stdout.splitlines() if line.startswith('{"event"')]
    return [json.loads(line) for line in lines], (began, ended)


def show(rows: dict[str, dict]) -> None:
    """Print forecast / actual of each stage, and the overheads that would have been right."""
    table = Table(title="forecast / actual, seconds (ratio)", box=None, title_justify="left")
    for name in ("case", "worker start", *STAGES, "total"):
        table.add_column(name, justify="left" if name == "case" else "right")
    for name, row in rows.items():
        told, actual = row["forecast"], row["actual"]
        cells = [cell(told[stage], actual.get(stage)) for stage in STAGES]
        total = cell(sum(told.values()), sum(actual.values()))
        table.add_row(name, f"{row['worker_start']:.2f}", *cells, total)
    wide = Console(width=160)
    wide.print(table)
    wide.print("\nWhat is missing (or too much, negative) in each stage, in starts of a worker:")
    for stage in ("sweep", "controls", "atlas", "report"):
        off = [
            (row["actual"][stage] - row["forecast"][stage]) / row["worker_start"]
            for row in rows.values()
            if stage in row["actual"]
        ]
        wide.print(f"  {stage}: {', '.join(f'{one:+.2f}' for one in off)}")
    wide.print(f"now: {OVERHEADS}")


def cell(told: float, actual: float | None) -> str:
    """``forecast / actual (ratio)``."""
    return "" if not actual else f"{told:.1f} / {actual:.1f} ({told / actual:.2f})"


if __name__ == "__main__":
    sys.exit(main())
