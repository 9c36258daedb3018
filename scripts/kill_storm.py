"""SIGKILL a sweep's driver, workers and raylet at random moments; resume it each time; compare the end.

    python scripts/kill_storm.py [--kills 20] [--seed 0]

A sweep of 12 trials, two at once, is run once in peace. The same sweep is then killed and resumed
until there were so many kills. Counted: trials whose commit was written twice, commits lost, MLflow runs,
and whether trials.parquet (times and hosts aside), the choice, the atlas and every weight are equal to
those of the run in peace. Exit code 1 when something differs.
"""

import argparse
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml

from raysae.activations.synthetic import SuperpositionWorld, write_synthetic_store
from raysae.files import read_json
from raysae.records.commit import VOLATILE_COLUMNS
from raysae.records.tables import read_table

VICTIMS = ("driver", "worker", "raylet")
TRIAL = re.compile(r"ray::\w*Trainable")
"""How Ray names the process of a trial."""
ENDS_SECONDS = 90
"""How long a driver that lost its raylet may take to end."""


def recipe(folder: Path, name: str) -> dict[str, Any]:
    """The sweep, as a recipe's keys."""
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


def start(config: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "raysae.sweep", str(config)],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def descendants(pid: int) -> dict[int, str]:
    """Every process below ``pid``, with what it calls itself."""
    parents, names = {}, {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            stat = (folder / "stat").read_text()
            command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
        parents[int(folder.name)] = int(stat.rsplit(")", 1)[1].split()[1])
        names[int(folder.name)] = command
    below = {pid}
    while more := {child for child, parent in parents.items() if parent in below} - below:
        below |= more
    return {child: names[child] for child in below - {pid}}


def victim_of(kind: str, driver: int) -> int | None:
    if kind == "driver":
        return driver
    found = [
        pid for pid, name in descendants(driver).items()
        if (TRIAL.match(name) if kind == "worker" else name.split(" ")[0].endswith("/raylet"))
    ]  # fmt: skip
    return random.choice(found) if found else None


def kill(pid: int) -> bool:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


def progress(run: Path) -> tuple[int, int]:
    """Commits, and states of running trials that were kept."""
    commits = len(list(run.glob("trials/*/metrics.json")))
    return commits, sum(path.stat().st_mtime_ns for path in run.glob("trials/*.training"))


def wait_for_progress(run: Path, process: subprocess.Popen[str]) -> None:
    there, until = progress(run), time.monotonic() + 120
    while progress(run) == there and process.poll() is None and time.monotonic() < until:
        time.sleep(0.02)


def commits_of(run: Path) -> dict[str, int]:
    """When each trial's commit was written."""
    return {path.parent.name: path.stat().st_mtime_ns for path in run.glob("trials/*/metrics.json")}


def storm(folder: Path, config: Path, run: Path, kills: int) -> dict[str, Any]:
    """Kill and resume until there were so many kills; what was seen on the way."""
    counts, rewritten, lost, goes = dict.fromkeys(VICTIMS, 0), 0, 0, 0
    mid_trial = 0
    while sum(counts.values()) < kills:
        process, goes = start(config), goes + 1
        before = commits_of(run)
        while process.poll() is None and sum(counts.values()) < kills:
            wait_for_progress(run, process)
            time.sleep(random.uniform(0, 0.5))
            kind = random.choice(VICTIMS)
            below, victim = descendants(process.pid), victim_of(kind, process.pid)
            mid_trial += bool(list(run.glob("trials/*.training")))
            if victim is None or process.poll() is not None or not kill(victim):
                continue
            counts[kind] += 1
            if kind == "worker":
                continue
            try:
                process.wait(ENDS_SECONDS)
            except subprocess.TimeoutExpired:
                print(f"  a driver without its raylet was still there after {ENDS_SECONDS} s")
                process.kill()
            for pid in below:  # what Ray leaves behind
                kill(pid)
        if process.poll() is None or process.returncode == 0:
            break
        after = commits_of(run)
        lost += len(before.keys() - after.keys())
        rewritten += sum(after[name] != when for name, when in before.items() if name in after)
    out, _ = process.communicate()
    if process.returncode != 0:
        process, goes = start(config), goes + 1
        out, _ = process.communicate()
    return {
        **counts, "goes": goes, "in mid-trial": mid_trial, "lost": lost, "rewritten": rewritten,
        "exit": process.returncode, "tail": out[-1500:],
    }  # fmt: skip


def stable(table: Path) -> list[dict[str, Any]]:
    return [
        {key: value for key, value in row.items() if key not in VOLATILE_COLUMNS}
        for row in read_table(table)
    ]


def weights(run: Path) -> dict[str, bytes]:
    return {
        path.relative_to(run).as_posix(): path.read_bytes()
        for path in sorted(run.rglob("sae.safetensors"))
    }


def mlflow_runs(folder: Path, names: tuple[str, ...]) -> dict[str, list[str]]:
    """Names of all runs of each raysae run, by the parent's name."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{folder / 'runs' / 'mlflow.db'}")
    found = client.search_runs(
        [e.experiment_id for e in client.search_experiments()], max_results=1000
    )
    parents = {run.info.run_id: run.info.run_name for run in found}
    by_parent: dict[str, list[str]] = {name: [] for name in names}
    for run in found:
        parent = run.data.tags.get("mlflow.parentRunId")
        if parent is not None:
            by_parent[parents[parent]].append(f"{run.info.run_name}: {run.info.status}")
    return {name: sorted(runs) for name, runs in by_parent.items()}


def compare(folder: Path, seen: dict[str, Any]) -> bool:
    """Print what the two runs have in common; whether it is everything."""
    peace, run = folder / "runs" / "peace", folder / "runs" / "storm"
    runs = mlflow_runs(folder, ("peace", "storm"))
    choices = [read_json(path / "selection.json") for path in (peace, run)]
    trials, atlas = (
        [stable(path / table) for path in (peace, run)]
        for table in ("trials.parquet", "atlas/metrics.parquet")
    )
    checks = {
        "no commit lost or written again": not seen["lost"] and not seen["rewritten"],
        "trials.parquet": trials[0] == trials[1],
        "choice": choices[0] == choices[1],
        "atlas": atlas[0] == atlas[1],
        "weights": weights(peace) == weights(run),
        f"MLflow runs ({len(runs['storm'])})": runs["peace"] == runs["storm"],
    }
    for name, same in checks.items():
        print(f"  {name}: {'equal' if same else 'DIFFERENT'}")
    return all(checks.values())


def main() -> int:
    """Run it in peace, run it in the storm, compare; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rows", type=int, default=40_000)
    args = parser.parse_args()
    random.seed(args.seed)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        world = SuperpositionWorld(d_in=64, atoms=256, p=0.02)
        write_synthetic_store(folder / "store", world, args.rows, sites=3, test=0.0)
        configs = {name: folder / f"{name}.yaml" for name in ("peace", "storm")}
        for name, config in configs.items():
            config.write_text(yaml.safe_dump(recipe(folder, name)))
        started = time.time()
        process = start(configs["peace"])
        out, _ = process.communicate()
        if process.returncode:
            print(out[-3000:])
            return 1
        print(f"in peace: {time.time() - started:.0f} s")
        started = time.time()
        seen = storm(folder, configs["storm"], folder / "runs" / "storm", args.kills)
        tail = seen.pop("tail")
        told = ", ".join(f"{name} {value}" for name, value in seen.items())
        print(f"in the storm: {time.time() - started:.0f} s; {told}")
        if seen["exit"]:
            print(tail)
            return 1
        equal, kills = compare(folder, seen), sum(seen[kind] for kind in VICTIMS)
        if kills < args.kills:
            print(f"the sweep was over after {kills} of {args.kills} kills: give it more --rows")
        return 0 if equal and kills >= args.kills else 1


if __name__ == "__main__":
    sys.exit(main())
