"""Live training against the ordinary way, a store first: figures, forward passes, disk, time.

    python scripts/bench_live.py [pocket] [stories] [--sequences 3000] [--gang 4] [--shuffle-rows 16384]

Each case runs the whole main job twice in folders of its own: a sweep of eight trials, in two gangs of
four, and an atlas of 24 sites (four layers at six positions), once with ``source.live=true`` and
``source.keep=no`` (or ``--keep``, and then the demand on disk falls away) and once over a store that it
writes first. Controls and the analysis of features, which are the same in both, are left out.
``stories`` is the small Llama of ../shared over GSM8K. Ray's workers run at niceness 0. One Ray serves
all, and its start is not measured.

The exit code is 1 when a demand fails: the same choice; explained variance within .003 for the chosen
config and in the mean over the atlas; as many forward passes over the training texts as the dry run says;
on disk under a tenth of the store's size, SAEs not counted; no more time than the other way.
"""

import argparse
import io
import json
import os
import re
import shutil
import sys
import tempfile
import time
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean
from typing import Any

os.environ.update(COLUMNS="400")  # lines of the run are looked for whole
os.environ.setdefault("RAY_worker_niceness", "0")

import ray
import transformers  # noqa: F401  (not a part of what is measured)
import yaml

from raysae.cluster.ray_internals import IDLE_MS
from raysae.pipeline.sweep_command import main as main_job
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
CPUS = 2
"""CPUs that Ray counts."""
LAYER = 2
"""The layer that is swept, at all tokens."""
WAYS = {False: "stored", True: "live"}
"""The folders of the two ways, by ``source.live``."""
STAGES = ("extract", "sweep", "atlas")
COLUMNS = ("trial", "layer", "position", "explained_variance")
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
    store: int
    """Those of its store."""
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
    shapes = [(d_sae, k) for d_sae in args.d_sae for k in (4, 8, 16, 32)]
    source = {
        "sequences": args.sequences, "context_length": 128, "validation": 0.03, "test": 0.0,
        "sequences_per_shard": max(args.sequences // 30, 1), "positions": POSITIONS,
        "patterns": PATTERNS, **source_of(case, args.shared), "live": live,
        **({"keep": args.keep} if live else {}),
    }  # fmt: skip
    return {
        "name": case, "runs_dir": str(folder / "runs"), "store": str(folder / "store"),
        "source": source, "records": {"mlflow": False},
        "training": {
            "epochs": 1, "batch_size": 256, "lr": 3e-3, "evaluations": 2,
            "shuffle_rows": args.shuffle_rows,
        },
        "sweep": {
            "sampler": "list", "trials": len(shapes), "layer": LAYER, "position": "all",
            "configs": [{"sae.d_sae": d_sae, "sae.k": k} for d_sae, k in shapes],
            "controls": "none",
        },
        "analyze": {"phases": []},
        # live, two workers train a gang each, and two compute
        "resources": {"gang": args.gang},
    }  # fmt: skip


def said(config: Path, *more: str) -> str:
    """What the main job prints. Exits when it fails."""
    printed = io.StringIO()
    with redirect_stdout(printed):
        code = main_job([str(config), *more])
    if code:
        sys.exit(f"{config}: exit code {code}\n{printed.getvalue()[-3000:]}")
    return printed.getvalue()


def passes_told(folder: Path, asked: dict[str, Any]) -> int:
    """The forward passes that the dry run of a live recipe tells; 0 when it tells none."""
    config, kept = folder / "dry.yaml", folder / "told"
    if not kept.exists():
        config.write_text(yaml.safe_dump(asked))
        found = TOLD.search(said(config, "--dry-run"))
        kept.write_text(found[1] if found else "0")
    return int(kept.read_text())


def run(folder: Path, asked: dict[str, Any]) -> Run:
    """Run a recipe in ``folder``, unless its figures are there."""
    kept = folder / "figures.json"
    if not kept.exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        kept.write_text(json.dumps(asdict(run_anew(folder, asked))))
    return Run(**read_json(kept))


def run_anew(folder: Path, asked: dict[str, Any]) -> Run:
    """Run a recipe in the empty ``folder``."""
    config = folder / "recipe.yaml"
    config.write_text(yaml.safe_dump(asked))
    began = time.monotonic()
    printed = said(config)
    seconds = time.monotonic() - began
    there = folder / "runs" / asked["name"]
    stages = read_json(there / "status.json")["stages"]
    took = {stage: stages[stage]["ended"] - stages[stage]["started"] for stage in STAGES}
    print(f"{folder.name}: {seconds:.1f} s, {took}", file=sys.stderr, flush=True)
    chosen = read_json(there / "selection.json")["choice"]["trial"]
    trials, atlas = (
        [{key: row.get(key) for key in COLUMNS} for row in read_table(there / name)]
        for name in ("trials.parquet", "atlas/metrics.parquet")
    )
    (folder / "printed").write_text(printed)
    passes = sum(float(found[2]) for found in READ.finditer(printed))
    return Run(
        seconds, took, trials, atlas, chosen, on_disk(folder), on_disk(folder / "store"), passes
    )


def on_disk(folder: Path) -> int:
    """Bytes of all files below ``folder``, without those of SAEs."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return sum(path.stat().st_size for path in files if path.name != "sae.safetensors")


def variance(rows: list[dict[str, Any]]) -> float:
    """The mean explained variance of trials or sites."""
    return mean(row["explained_variance"] for row in rows)


def compare(case: str, folder: Path, args: argparse.Namespace) -> bool:
    """Run a case in both ways and print the table; returns whether all demands are met."""
    asked = {live: recipe(folder / ways, case, live, args) for live, ways in WAYS.items()}
    told = passes_told(folder, asked[True])
    stored, live = (run(folder / WAYS[live], asked[live]) for live in (False, True))
    store = stored.store
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
        f"on disk {live.bytes / store:.3f} of the store": args.keep != "no"
        or live.bytes < SMALLEST * store,
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
    parser.add_argument("--d-sae", type=int, nargs="+", default=[512, 1024])
    parser.add_argument("--gang", type=int, default=4)
    parser.add_argument(
        "--keep", choices=["no", "auto", "yes"], default="no", help="source.keep (no)"
    )
    parser.add_argument("--shuffle-rows", type=int, default=16_384)
    parser.add_argument("--folder", type=Path, help="keep figures there, and go on from them")
    parser.add_argument("--shared", type=Path, default=SHARED, help="where model and texts are")
    args = parser.parse_args()
    met = []
    ray.init(
        num_cpus=CPUS, include_dashboard=False, log_to_driver=False, logging_level="ERROR",
        _system_config={"idle_worker_killing_time_threshold_ms": IDLE_MS},  # as the main job's own
    )  # fmt: skip
    try:
        for case in args.cases or CASES:
            with tempfile.TemporaryDirectory() as name:
                folder = (args.folder or Path(name)) / case
                folder.mkdir(parents=True, exist_ok=True)
                met.append(compare(case, folder.absolute(), args))
    finally:
        ray.shutdown()
    return int(not all(met))


if __name__ == "__main__":
    sys.exit(main())
