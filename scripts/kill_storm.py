"""SIGKILL a run's processes at random moments; compare its results with an undisturbed run.

    python scripts/kill_storm.py [--aim sweep|atlas|seeds|extraction|scan|live|live-keep|analyze]
        [--kills 20]

- ``sweep``: 12 trials, two at once. Driver, workers and raylet are killed, and the run is resumed.
- ``atlas``: 24 sites, two at once. Only workers are killed, and the run must end without a restart.
- ``seeds``: six sites of three seeds each. Driver and workers are killed.
- ``extraction``: 100 shards, two at once. Workers and driver are killed; a killed driver is
  restarted.
- ``scan``: a sweep whose two trials at a time share one scan of a store five times larger than the
  memory allowed. Driver, trials, the scan's service, Ray Data's read workers and raylet are killed.
- ``live``: a sweep and an atlas that train while the pocket GPT-2 is read. Driver, trials, service,
  extraction workers, atlas workers and raylet are killed. ``live-keep`` also writes the rows.
- ``analyze``: the phases loss, labels, tracking, stability and ablation on an atlas of six sites. Driver,
  workers and raylet are killed. Every file of the analysis is compared.

It counts commits that were lost or written twice. It compares the tables (without times and hosts),
the choice, every weight and the MLflow runs; for a store that was made, every byte of it. The exit
code is 1 when something differs.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml
from kill_aims import AIMS, Aim

from raysae.activations.synthetic import SuperpositionWorld, write_synthetic_store
from raysae.records.commit import VOLATILE_COLUMNS
from raysae.records.tables import read_table
from raysae.storage.files import read_json

ENDS_SECONDS = 90
"""Seconds within which a driver must end after its raylet was killed."""
TOLD = ("Reading:", "Waves:", "Live:")
"""Lines of a run that say how it reads."""
LOOKS_SECONDS = 2.0
"""Seconds for which a process of some kind is looked for before another kind is drawn."""


def start(aim: Aim, config: Path) -> subprocess.Popen[str]:
    """Start the command."""
    run = config.parent / aim.folder / config.stem
    words = [str(run), *aim.words] if aim.words else [str(config)]
    return subprocess.Popen(
        [sys.executable, "-m", aim.module, *words],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def descendants(pid: int) -> dict[int, str]:
    """The command line of every descendant process of ``pid``, by process id."""
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


def victim_of(aim: Aim, kind: str, driver: int) -> int | None:
    """The id of a random process of this kind; None when there is none."""
    pattern = aim.victims[kind]
    if pattern is None:
        return driver
    found = [pid for pid, name in descendants(driver).items() if pattern.match(name)]
    return random.choice(found) if found else None


def soon_a_victim(aim: Aim, kind: str, process: subprocess.Popen[str]) -> int | None:
    """The same, waited for: a task that reads is there for a moment only."""
    until = time.monotonic() + LOOKS_SECONDS
    victim = victim_of(aim, kind, process.pid)
    while victim is None and process.poll() is None and time.monotonic() < until:
        time.sleep(0.01)
        victim = victim_of(aim, kind, process.pid)
    return victim


def kill(pid: int) -> bool:
    """Kill a process; returns whether it existed."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


def times(run: Path, pattern: str) -> dict[str, int]:
    """Modification time in nanoseconds of each file that matches the pattern."""
    found = {}
    for path in run.glob(pattern):
        try:
            found[path.relative_to(run).as_posix()] = path.stat().st_mtime_ns
        except FileNotFoundError:  # removed in the meantime
            continue
    return found


def progress(aim: Aim, run: Path) -> tuple[int, int]:
    """Number of commits, and a number that changes when an item in progress does."""
    return len(times(run, aim.commits)), sum(times(run, aim.begun).values())


def wait_for_progress(aim: Aim, run: Path, process: subprocess.Popen[str]) -> None:
    """Wait until ``progress`` changes or the process ends, at most 120 s."""
    there, until = progress(aim, run), time.monotonic() + 120
    while progress(aim, run) == there and process.poll() is None and time.monotonic() < until:
        time.sleep(0.02)


def storm(aim: Aim, config: Path, run: Path, kills: int) -> dict[str, Any]:
    """Kill and resume until there were ``kills`` kills; returns what was counted."""
    counts, rewritten, lost, attempts = dict.fromkeys(aim.victims, 0), 0, 0, 0
    mid_item = 0
    while sum(counts.values()) < kills:
        process, attempts = start(aim, config), attempts + 1
        before = times(run, aim.commits)
        while process.poll() is None and sum(counts.values()) < kills:
            wait_for_progress(aim, run, process)
            time.sleep(random.uniform(0, 0.5))
            kind = random.choice(list(aim.victims))
            below, victim = descendants(process.pid), soon_a_victim(aim, kind, process)
            if victim is None or process.poll() is not None or not kill(victim):
                continue
            in_item = bool(times(run, aim.begun))
            counts[kind], mid_item = counts[kind] + 1, mid_item + in_item
            print(f"  killed: {kind}{', in mid-item' * in_item}", flush=True)
            if kind not in ("driver", "raylet"):
                continue
            try:
                process.wait(ENDS_SECONDS)
            except subprocess.TimeoutExpired:
                print(f"  a driver without its raylet was still there after {ENDS_SECONDS} s")
                process.kill()
            for pid in below:  # Ray's processes that still run
                kill(pid)
        if process.poll() is None or process.returncode == 0:
            break
        after = times(run, aim.commits)
        lost += len(before.keys() - after.keys())
        rewritten += sum(after[name] != when for name, when in before.items() if name in after)
    out, _ = process.communicate()
    if process.returncode != 0:
        process, attempts = start(aim, config), attempts + 1
        out, _ = process.communicate()
    return {
        **counts, "attempts": attempts, "in mid-item": mid_item, "lost": lost,
        "rewritten": rewritten, "exit": process.returncode, "tail": out[-1500:],
    }  # fmt: skip


def storm_in_one_attempt(aim: Aim, config: Path, run: Path, kills: int) -> dict[str, Any]:
    """Kill workers at random moments between the first and the last commit, without resuming."""
    process, killed, mid_item, rewritten = start(aim, config), 0, 0, 0
    seen: dict[str, int] = {}
    for done in sorted(random.randrange(aim.sites - 1) for _ in range(kills)):
        while len(times(run, aim.commits)) < done or not times(run, aim.begun):
            if process.poll() is not None:
                break
            time.sleep(0.02)
        time.sleep(random.uniform(0, 1))
        while process.poll() is None:
            victim = victim_of(aim, "worker", process.pid)
            if victim is not None and kill(victim):
                killed, mid_item = killed + 1, mid_item + bool(times(run, aim.begun))
                break
            time.sleep(0.02)  # both workers are being replaced
        now = times(run, aim.commits)
        rewritten += sum(now.get(name) != when for name, when in seen.items())
        seen = now
    out, _ = process.communicate()
    now = times(run, aim.commits)
    rewritten += sum(now.get(name) != when for name, when in seen.items())
    return {
        "worker": killed, "attempts": 1, "in mid-item": mid_item, "lost": 0,
        "rewritten": rewritten, "exit": process.returncode, "tail": out[-1500:],
    }  # fmt: skip


def stable(table: Path) -> list[dict[str, Any]]:
    """The rows of a table without the columns that differ between equal runs."""
    return [
        {key: value for key, value in row.items() if key not in VOLATILE_COLUMNS}
        for row in read_table(table)
    ]


def content(folder: Path, pattern: str) -> dict[str, bytes]:
    """The content of each file that matches the pattern, by its path below ``folder``."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob(pattern))
        if path.is_file()
    }


def mlflow_runs(folder: Path, names: tuple[str, ...]) -> dict[str, list[str]]:
    """Names and states of the MLflow child runs of each raysae run, by its name."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
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


def same_runs(peace: Path, run: Path) -> dict[str, bool]:
    """Whether each product of two runs is equal; the atlas and MLflow's where the runs have them."""
    choices = [read_json(path / "selection.json") for path in (peace, run)]
    trials = [stable(path / "trials.parquet") for path in (peace, run)]
    found = {"trials.parquet": trials[0] == trials[1], "choice": choices[0] == choices[1]}
    if (peace / "atlas").is_dir():
        atlas = [stable(path / "atlas/metrics.parquet") for path in (peace, run)]
        done = [row["state"] for row in atlas[1]].count("done")
        found[f"atlas ({done} of {len(atlas[1])} sites done)"] = atlas[0] == atlas[1]
    if (peace / "analysis").is_dir():
        files = [content(path / "analysis", "*") for path in (peace, run)]
        found[f"analysis ({len(files[1])} files)"] = files[0] == files[1]
    weights = [content(path, "sae.safetensors") for path in (peace, run)]
    found[f"weights ({len(weights[1])} files)"] = weights[0] == weights[1]
    if (run.parent / "mlflow.db").is_file():
        runs = mlflow_runs(run.parent, (peace.name, run.name))
        found[f"MLflow runs ({len(runs[run.name])})"] = runs[peace.name] == runs[run.name]
    return found


def same_stores(peace: Path, store: Path) -> dict[str, bool]:
    """Whether every file of two stores is equal."""
    one, other = content(peace, "*"), content(store, "*")
    return {f"store ({len(one)} files)": one == other}


def compare(aim: Aim, folder: Path, name: str, seen: dict[str, Any]) -> bool:
    """Print which products of the run are equal to those in peace; returns whether all are."""
    peace, run = (folder / aim.folder / one for one in ("peace", name))
    checks = {"no commit lost or written again": not seen["lost"] and not seen["rewritten"]}
    if aim.folder == "runs":
        checks |= same_runs(peace, run)
    if not aim.sites:
        checks |= same_stores(*(folder / "stores" / one for one in ("peace", name)))
    for what, equal in checks.items():
        print(f"  {what}: {'equal' if equal else 'DIFFERENT'}")
    return all(checks.values())


def configured(aim: Aim, folder: Path, name: str) -> Path:
    """The file with the recipe of this name; a run that the command is about is made by it."""
    config = folder / f"{name}.yaml"
    config.write_text(yaml.safe_dump(aim.recipe(folder, name)))
    if aim.words:
        command = [sys.executable, "-m", "raysae.sweep", str(config)]
        subprocess.run(command, check=True, capture_output=True)
    return config


def in_peace(aim: Aim, folder: Path) -> bool:
    """Run the command undisturbed, unless that was done in this folder; whether it ended well."""
    done = folder / "peace.txt"
    if not done.is_file():
        config = configured(aim, folder, "peace")
        began, process = time.time(), start(aim, config)
        out, _ = process.communicate()
        if process.returncode:
            print(out[-3000:])
            return False
        told = [line for line in out.splitlines() if line.startswith(TOLD)]
        done.write_text("\n".join([*told, f"in peace: {time.time() - began:.0f} s"]))
    print(done.read_text(), flush=True)
    return True


def storm_and_compare(aim: Aim, folder: Path, name: str, kills: int) -> bool:
    """Run the command undisturbed and with kills, compare both; returns whether they are equal."""
    if not in_peace(aim, folder):
        return False
    config = configured(aim, folder, name)
    started, run = time.time(), folder / aim.folder / name
    if list(aim.victims) == ["worker"]:
        seen = storm_in_one_attempt(aim, config, run, kills)
    else:
        seen = storm(aim, config, run, kills)
    tail = seen.pop("tail")
    told = ", ".join(f"{what} {value}" for what, value in seen.items())
    print(f"in the storm: {time.time() - started:.0f} s; {told}")
    if seen["exit"]:
        print(tail)
        return False
    killed = sum(seen[kind] for kind in aim.victims)
    if killed < kills:
        print(f"it was over after {killed} of {kills} kills: give it more --rows, or fewer kills")
    return compare(aim, folder, name, seen) and killed >= kills


def main() -> int:
    """Run the test; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--aim", choices=AIMS, default="sweep")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rows", type=int, default=40_000)
    parser.add_argument(
        "--folder", type=Path, help="kept; a later storm there needs no other peace"
    )
    args = parser.parse_args()
    random.seed(args.seed)
    aim = AIMS[args.aim]
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        if aim.sites and not (folder / "store" / "manifest.json").is_file():
            world = SuperpositionWorld(d_in=64, atoms=256, p=0.02)
            write_synthetic_store(folder / "store", world, args.rows, sites=aim.sites, test=0.0)
        return 0 if storm_and_compare(aim, folder, f"storm-{args.seed}", args.kills) else 1


if __name__ == "__main__":
    sys.exit(main())
