"""What ``kill_storm.py`` runs and kills: each aim's recipe, processes and files of progress."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raysae.extraction.plan import WORK_FOLDER

TRIAL = re.compile(r"ray::\w*SAETrials|ray::\w*Trainable")
POOL_WORKER = re.compile(r"ray::PoolWorker")
SERVICE = re.compile(r"ray::ScanService")
READ = re.compile(r"ray::Read")
FORWARD = re.compile(r"ray::MapBatches\(forward\)|ray::MapWorker")
RAYLET = re.compile(r"\S*/raylet ")
"""The names that Ray gives the working processes."""
CONFIG = {"sae.d_sae": 256, "sae.k": 8}
"""The config that the atlas trains."""


def sweep_recipe(folder: Path, name: str) -> dict[str, Any]:
    """The recipe of a run with many trials."""
    return {
        "name": name, "runs_dir": str(folder / "runs"), "store": str(folder / "store"),
        "source": None,
        "training": {"epochs": 45, "batch_size": 128, "lr": 3e-3, "evaluations": 6},
        "sweep": {
            "trials": 12, "startup_trials": 4, "seeds_per_trial": 2, "layer": 0,
            "space": {
                "sae.d_sae": {"low": 64, "high": 512, "powers_of_two": True},
                "sae.k": {"low": 2, "high": 16, "log": True},
            },
        },
        "resources": {"checkpoint_seconds": 0.5, "cpus": 2, "retries": 1000},
    }  # fmt: skip


def atlas_recipe(folder: Path, name: str) -> dict[str, Any]:
    """The recipe of a run with one trial and an atlas."""
    recipe = sweep_recipe(folder, name)
    training = {**recipe["training"], "epochs": 8}
    sweep = {"sampler": "list", "configs": [CONFIG], "trials": 1, "layer": 0}
    resources = {**recipe["resources"], "retries": 10}
    return {**recipe, "training": training, "sweep": sweep, "resources": resources}


def seeds_recipe(folder: Path, name: str) -> dict[str, Any]:
    """The recipe of a run with one trial and an atlas of three seeds a site."""
    return {**atlas_recipe(folder, name), "atlas": {"seeds_per_site": 3}}


def extraction_recipe(folder: Path, name: str) -> dict[str, Any]:
    """The recipe of an extraction into many shards."""
    source = {
        "sequences": 8000, "sequences_per_shard": 80, "layers": [0, 1, 2, 3], "positions": ["all"],
    }  # fmt: skip
    return {
        "name": name, "store": str(folder / "stores" / name), "source": source,
        "resources": {"cpus": 2, "retries": 10},
    }  # fmt: skip


def scan_recipe(folder: Path, name: str) -> dict[str, Any]:
    """The recipe of a sweep that scans a store some times larger than the memory allowed."""
    recipe = sweep_recipe(folder, name)
    training = {**recipe["training"], "epochs": 4, "batch_size": 64, "shuffle_rows": 1024}
    sweep = {**recipe["sweep"], "trials": 4, "startup_trials": 2, "seeds_per_trial": 1}
    resources = {**recipe["resources"], "cpus": 3, "reading": "scan", "memory": 800_000}
    return {
        **recipe, "training": training, "sweep": sweep, "resources": resources,
        "atlas": {"enabled": False}, "records": {"mlflow": False},
    }  # fmt: skip


def live_recipe(folder: Path, name: str, keep: str = "no") -> dict[str, Any]:
    """The recipe of a sweep and an atlas that train while the pocket GPT-2 is read."""
    recipe = scan_recipe(folder, name)
    source = {
        "live": True, "keep": keep, "sequences": 600, "sequences_per_shard": 30,
        "layers": [0, 1, 2], "positions": ["all"],
    }  # fmt: skip
    training = {**recipe["training"], "epochs": 2}
    resources = {**recipe["resources"], "cpus": 4, "reading": "auto", "memory": None}
    return {
        **recipe, "store": str(folder / "stores" / name), "source": source, "training": training,
        "resources": resources, "atlas": {"enabled": True},
    }  # fmt: skip


def kept_recipe(folder: Path, name: str) -> dict[str, Any]:
    """The same, where the first pass also writes the training rows."""
    return live_recipe(folder, name, keep="yes")


def analyzed_recipe(folder: Path, name: str) -> dict[str, Any]:
    """The recipe of a run whose atlas is analysed: six sites of two seeds of the pocket GPT-2."""
    return {
        "name": name, "runs_dir": str(folder / "runs"), "store": str(folder / "stores" / name),
        "source": {"sequences": 300, "layers": [1, 2, 3], "positions": [-1, "all"]},
        "training": {"epochs": 2}, "sweep": {"trials": 2, "startup_trials": 2, "controls": "none"},
        "atlas": {"seeds_per_site": 2}, "analyze": {"phases": []}, "records": {"mlflow": False},
        "resources": {"cpus": 2, "retries": 1000},
    }  # fmt: skip


PHASES = (
    "loss", "labels", "tracking", "stability", "ablation", "ablation.features=4",
    "ablation.sequences=40",
)  # fmt: skip
"""What the analysis of that run is asked for."""


@dataclass(frozen=True)
class Aim:
    """A command to test, the processes to kill, and the files that show its progress."""

    module: str
    recipe: Callable[[Path, str], dict[str, Any]]
    victims: Mapping[str, re.Pattern[str] | None]
    """Patterns of the command lines of each kind; None for the driver."""
    folder: str
    """The folder of runs or stores, below the temporary folder."""
    commits: str
    """Pattern of the commit files in a run's folder."""
    begun: str
    """Pattern of the files that change while an item is in progress."""
    sites: int = 3
    """Number of sites in the store; 0: the run extracts a store of its own."""
    words: tuple[str, ...] = ()
    """What follows the run's folder, where the command is about a run that is made first, undisturbed."""


DRIVER: dict[str, re.Pattern[str] | None] = {"driver": None}
AIMS = {
    "sweep": Aim(
        "raysae.sweep", sweep_recipe, {**DRIVER, "worker": TRIAL, "raylet": RAYLET}, "runs",
        "trials/*/metrics.json", "trials/*.training",
    ),
    "atlas": Aim(
        "raysae.sweep", atlas_recipe, {"worker": POOL_WORKER}, "runs",
        "atlas/*/*/metrics.json", "atlas/*/*.training", sites=24,
    ),
    "seeds": Aim(
        "raysae.sweep", seeds_recipe, {**DRIVER, "worker": POOL_WORKER}, "runs",
        "atlas/*/*/metrics.json", "atlas/*/*.training", sites=6,
    ),
    "extraction": Aim(
        "raysae.extract", extraction_recipe, {**DRIVER, "worker": POOL_WORKER}, "stores",
        f"{WORK_FOLDER}/shard-*.json", f"{WORK_FOLDER}/shard-*.tokens", sites=0,
    ),
    "scan": Aim(
        "raysae.sweep", scan_recipe,
        {**DRIVER, "worker": TRIAL, "service": SERVICE, "reader": READ, "raylet": RAYLET},
        "runs", "**/metrics.json", "**/*.training",
    ),
}  # fmt: skip
AIMS["analyze"] = Aim(
    "raysae.analyze", analyzed_recipe, {**DRIVER, "worker": POOL_WORKER, "raylet": RAYLET}, "runs",
    "analysis/*/items/*/made.json", "analysis/*/items/.*.tmp/*", sites=0, words=PHASES,
)  # fmt: skip
LIVE = {
    **DRIVER, "worker": TRIAL, "service": SERVICE, "extraction": FORWARD, "atlas": POOL_WORKER,
    "raylet": RAYLET,
}  # fmt: skip
for live, made in (("live", live_recipe), ("live-keep", kept_recipe)):
    AIMS[live] = Aim(
        "raysae.sweep", made, LIVE, "runs", "**/metrics.json", "**/*.training", sites=0
    )
