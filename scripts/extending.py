"""Extend a finished run in four ways, each compared with a run that asked for all of it at once.

    python scripts/extending.py [--trials 8] [--seed 0]

More trials (8 to 16), more layers in the atlas (2 to 4), another rule, another objective. Counted are the
SAEs that were trained; compared are the files that were there before (by hash), and trials.parquet (times
and hosts aside), the choice, the atlas and every weight with those of the other run. Exit code 1 when
something differs.
"""

import argparse
import hashlib
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import raysae
from raysae.activations.synthetic import SuperpositionWorld, write_synthetic_store
from raysae.metrics import volatile

SPACE = {
    "sae.d_sae": {"low": 32, "high": 256, "powers_of_two": True},
    "sae.k": {"low": 1, "high": 16, "log": True},
}
ONE_OBJECTIVE = [{"metric": "explained_variance", "goal": "maximize"}]


def recipe(folder: Path, runs: str, trials: int, seed: int) -> dict[str, Any]:
    return {
        "name": "extended", "runs_dir": str(folder / runs), "store": str(folder / "store"),
        "source": None, "seed": seed,
        "training": {"epochs": 6, "batch_size": 128, "lr": 3e-3, "evaluations": 4},
        "sweep": {"trials": trials, "startup_trials": 4, "layer": 0, "space": SPACE},
        "select": {"rule": "max_ev"},
        "atlas": {"layers": [0, 1]},
        "records": {"mlflow": False},
    }  # fmt: skip


def changes(trials: int) -> dict[str, dict[str, dict[str, Any]]]:
    return {
        f"trials {trials} to {2 * trials}": {"sweep": {"trials": 2 * trials}},
        "layers 2 to 4": {"atlas": {"layers": [0, 1, 2, 3]}},
        "another rule": {"select": {"rule": "parsimonious", "tolerance": 0.5}},
        "another objective": {"sweep": {"objectives": ONE_OBJECTIVE}},
    }


def changed(recipe: dict[str, Any], change: dict[str, dict[str, Any]]) -> dict[str, Any]:
    return {**recipe, **{section: {**recipe[section], **keys} for section, keys in change.items()}}


def weights(run: Path) -> dict[str, str]:
    """The hash of every SAE that the run has, by its place."""
    return {
        file.parent.relative_to(run).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
        for kind in ("trials", "atlas")
        for file in (run / kind).rglob("sae.safetensors")
    }


def written(run: Path) -> set[int]:
    """When each SAE was committed; a folder that is moved keeps its time."""
    markers = [*(run / "trials").rglob("metrics.json"), *(run / "atlas").rglob("metrics.json")]
    return {marker.stat().st_mtime_ns for marker in markers}


def stable(rows: Any) -> list[dict[str, Any]]:
    return [{key: row[key] for key in row if key not in volatile()} for row in rows]


def extend(folder: Path, name: str, base: dict[str, Any], change: Any) -> bool:
    """Extend a copy of the finished run, and run all at once; print what was seen."""
    shutil.rmtree(folder / "copy", ignore_errors=True)
    shutil.rmtree(folder / "at_once", ignore_errors=True)
    shutil.copytree(folder / "runs", folder / "copy")
    run = folder / "copy" / "extended"
    before, times = weights(run), written(run)
    wanted = changed(base, change)
    extended = raysae.sweep({**wanted, "runs_dir": str(folder / "copy")})
    trained, there = len(written(run) - times), weights(run)
    at_once = raysae.sweep({**wanted, "runs_dir": str(folder / "at_once")})
    of_that = weights(at_once.folder)
    checks = {
        "untouched": times <= written(run) and set(before.values()) <= set(there.values()),
        "trials": stable(extended.trials) == stable(at_once.trials),
        "choice": extended.selection == at_once.selection,
        "atlas": stable(extended.atlas) == stable(at_once.atlas),
        "weights": {place: there.get(place) for place in of_that} == of_that,
    }
    told = ", ".join(f"{what} {'equal' if same else 'DIFFERENT'}" for what, same in checks.items())
    print(f"{name}: {trained} SAEs trained of {len(of_that)}; {told}", flush=True)
    return all(checks.values())


def main() -> int:
    """Make the run, extend it; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        world = SuperpositionWorld(d_in=32, atoms=96, p=0.04)
        write_synthetic_store(folder / "store", world, 4000, sites=4, test=0.0)
        base = recipe(folder, "runs", args.trials, args.seed)
        raysae.sweep(base)
        same = [extend(folder, name, base, change) for name, change in changes(args.trials).items()]
    return 0 if all(same) else 1


if __name__ == "__main__":
    sys.exit(main())
