"""Live training against the ordinary way, a store first: figures, forward passes, disk, time.

    python scripts/bench_live.py [pocket] [stories] [--sequences 3000]

Each case runs the whole main job twice in folders of its own: a sweep of eight trials, four at once, and
an atlas of 24 sites (four layers at six positions), once with ``source.live=true`` and ``source.keep=no``
and once over a store that it writes first. ``stories`` is the small Llama of ../shared over GSM8K. Ray's
workers run at niceness 0.

The exit code is 1 when a demand fails: the same choice; explained variance within .003 for the chosen
config and in the mean over the atlas; as many forward passes over the training texts as the dry run says;
on disk under a tenth of the store's size, SAEs not counted; no more time than the other way.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import yaml

from raysae.records.tables import read_table
from raysae.storage.files import read_json

SHARED = Path(__file__).resolve().parents[2] / "shared"
POSITIONS = ["all", "numbers", "operators", "words", "small", "rest"]
PATTERNS = {"words": "[A-Za-z]+", "small": "[a-z]", "rest": r"[^A-Za-z0-9\s]"}
CASES: dict[str, dict[str, Any]] = {
    "pocket": {"layers": [0, 1, 2, 3], "text": "{text}"},
    "stories": {
        "layers": [1, 2, 3, 4], "model": "models/stories260K", "dataset": "data/gsm8k/train.jsonl",
        "text": "{question} {answer}",
    },
}  # fmt: skip
LAYER = 2
"""The layer that is swept, at all tokens."""
STAGES = ("extract", "sweep", "atlas")
WITHIN, SMALLEST = 0.003, 0.1
READ = re.compile(r"the model read ([\d,]+) tokens, ([\d.]+) passes")
TOLD = re.compile(r"live: (\d+) forward pass")


@dataclass(frozen=True)
class Run:
    """What one way gave, and took."""

    seconds: float
    stages: dict[str, float]
    trials: list[dict[str, Any]]
    atlas: list[dict[str, Any]]
    chosen: int
    bytes: int
    """On disk, without SAEs."""
    passes: float
    """Passes of the model over the training texts; 0 where none was told."""


def source_of(case: str, shared: Path) -> dict[str, Any]:
    """The case's part of the source, with model and texts below ``shared``."""
    paths = {
        key: str(shared / CASES[case][key]) for key in ("model", "dataset") if key in CASES[case]
    }
    return {**CASES[case], **paths}


def recipe(folder: Path, case: str, live: bool, args: argparse.Namespace) -> dict[str, Any]:
    """The recipe of one way."""
    shapes = [(d_sae, k) for d_sae in (64, 128) for k in (4, 8, 16, 32)]
    source = {
        "sequences": args.sequences, "context_length": 128, "validation": 0.03, "test": 0.0,
        "sequences_per_shard": max(args.sequences // 12, 1), "positions": POSITIONS,
        "patterns": PATTERNS, **source_of(case, args.shared), "live": live,
        **({"keep": "no"} if live else {}),
    }  # fmt: skip
    return {
        "name": case, "runs_dir": str(folder / "runs"), "store": str(folder / "store"),
        "source": source, "records": {"mlflow": False},
        "training": {"epochs": 1, "batch_size": 256, "lr": 3e-3, "evaluations": 2},
        "sweep": {
            "sampler": "list", "trials": len(shapes), "layer": LAYER, "position": "all",
            "configs": [{"sae.d_sae": d_sae, "sae.k": k} for d_sae, k in shapes],
        },
        # live, half of the eight workers compute, and four train
        "resources": {"cpus": 8, "max_concurrent": 8 if live else 4},
    }  # fmt: skip


def command(config: Path, *more: str) -> tuple[str, float]:
    """What the main job prints, and its seconds. Exits when it fails."""
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "raysae.sweep", str(config), *more], text=True, check=False,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        env={**os.environ, "COLUMNS": "400", "RAY_worker_niceness": "0"},
    )  # fmt: skip
    if done.returncode:
        sys.exit(f"{config}: exit code {done.returncode}\n{done.stdout[-3000:]}")
    return done.stdout, time.monotonic() - began


def run(folder: Path, asked: dict[str, Any]) -> tuple[Run, int]:
    """Run a recipe in ``folder``; also the passes that its dry run tells (0 when it tells none)."""
    folder.mkdir()
    config = folder / "recipe.yaml"
    config.write_text(yaml.safe_dump(asked))
    told = 0
    if asked["source"]["live"]:
        found = TOLD.search(command(config, "--dry-run")[0])
        told = int(found[1]) if found else 0
    said, seconds = command(config)
    there = folder / "runs" / asked["name"]
    stages = read_json(there / "status.json")["stages"]
    took = {stage: stages[stage]["ended"] - stages[stage]["started"] for stage in STAGES}
    chosen = read_json(there / "selection.json")["choice"]["trial"]
    trials = read_table(there / "trials.parquet")
    atlas = read_table(there / "atlas" / "metrics.parquet")
    passes = sum(float(found[2]) for found in READ.finditer(said))
    return Run(seconds, took, trials, atlas, chosen, on_disk(folder), passes), told


def on_disk(folder: Path) -> int:
    """Bytes of all files below ``folder``, without those of SAEs."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return sum(path.stat().st_size for path in files if path.name != "sae.safetensors")


def variance(rows: list[dict[str, Any]]) -> float:
    """The mean explained variance of trials or sites."""
    return mean(row["explained_variance"] for row in rows)


def compare(case: str, folder: Path, args: argparse.Namespace) -> bool:
    """Run a case in both ways and print the table; returns whether all demands are met."""
    stored, _ = run(folder / "stored", recipe(folder / "stored", case, False, args))
    live, told = run(folder / "live", recipe(folder / "live", case, True, args))
    store = sum(path.stat().st_size for path in (folder / "stored" / "store").rglob("*.*"))
    at = [
        next(one for one in way.trials if one["trial"] == stored.chosen) for way in (stored, live)
    ]
    rows = [
        ("seconds", stored.seconds, live.seconds),
        *((f"seconds of {stage}", stored.stages[stage], live.stages[stage]) for stage in STAGES),
        ("on disk, MB", stored.bytes / 1e6, live.bytes / 1e6),
        ("passes over the training texts", 1.0, live.passes),
        ("explained variance, chosen config", *(one["explained_variance"] for one in at)),
        ("explained variance, mean of trials", variance(stored.trials), variance(live.trials)),
        (f"explained variance, mean of {len(stored.atlas)} sites", variance(stored.atlas),
         variance(live.atlas)),
    ]  # fmt: skip
    print(f"\n{case}: the store holds {store / 1e6:,.1f} MB")
    print(f"{'':40} {'store first':>12} {'live':>12} {'ratio':>8} {'difference':>11}")
    for name, one, other in rows:
        print(f"{name:40} {one:12.4f} {other:12.4f} {other / one:8.3f} {other - one:+11.4f}")
    demands = {
        f"the same trial is chosen ({stored.chosen}, {live.chosen})": stored.chosen == live.chosen,
        f"the atlas has {len(stored.atlas)} sites": len(live.atlas) == len(stored.atlas) == 24,
        "explained variance of the chosen config": abs(rows[-3][2] - rows[-3][1]) <= WITHIN,
        "explained variance over the atlas": abs(rows[-1][2] - rows[-1][1]) <= WITHIN,
        f"passes as the dry run says ({told})": round(live.passes, 2) == told,
        f"on disk {live.bytes / store:.3f} of the store": live.bytes < SMALLEST * store,
        f"{live.seconds / stored.seconds:.2f} of the time": live.seconds <= stored.seconds,
    }
    for name, met in demands.items():
        print(f"{'met' if met else 'NOT MET':8} {name}", flush=True)
    return all(demands.values())


def main() -> int:
    """Print a table for each case; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"of {', '.join(CASES)}")
    parser.add_argument("--sequences", type=int, default=3000)
    parser.add_argument("--shared", type=Path, default=SHARED, help="where model and texts are")
    args = parser.parse_args()
    met = []
    for case in args.cases or CASES:
        with tempfile.TemporaryDirectory() as folder:
            met.append(compare(case, Path(folder), args))
    return int(not all(met))


if __name__ == "__main__":
    sys.exit(main())
