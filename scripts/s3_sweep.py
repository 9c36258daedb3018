"""A sweep over a store on a real S3 server on loopback: how often it is read, and what that takes here.

    scripts/s3.sh  # once
    python scripts/s3_sweep.py [--gb 0.5] [--reading scan] [--trials 8] [--at-once 4] [--rate 200e6]

The store is five times larger than ``resources.memory`` (``--times``). Counted are the bytes that the
server sends, the files and bytes in the cache folder, and the memory of the sweep's processes together,
what they share counted once (Linux's PSS). The exit code is 1 when the sweep fails, reads the store more
often than ``--most`` times, or leaves files in the cache folder. With ``--times-of-one`` the same sweep
with a single trial runs before, and the ratio of the times is printed.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from kill_storm import descendants
from pyarrow import fs
from s3_server import S3Server, missing, s3_server

from raysae.activations.store import Store, open_store
from raysae.activations.synthetic import SuperpositionWorld, write_synthetic_store

BUCKET, STORE = "bucket", "bucket/store"
D_IN = 64
"""Rows are small and many, so that the survey of up to 262,144 of them, which gives the statistics, is a
small part of a pass."""
D_SAE, BATCH = 64, 4096
WINDOWS = 16
"""So many shuffle windows fit in the memory allowed."""
SHARD_BYTES = 16e6
"""moto reads a whole object to answer for a range of it."""
SAMPLE_SECONDS = 1.0


@dataclass
class Seen:
    """What was measured during one sweep."""

    code: int = 1
    seconds: float = 0.0
    sent: int = 0
    """Bytes of the store's objects that the server sent."""
    cache_files: int = 0
    """Files in the cache folder after the end."""
    cache_peak: int = 0
    """Bytes in the cache folder, at most."""
    memory: list[tuple[float, int]] = field(default_factory=list)
    """Seconds since the start, and the bytes of all processes then."""
    course: dict[int, int] = field(default_factory=dict)
    """For each number of committed trials, the bytes that the server had sent when it was last seen; -1
    is before the trials' first file."""
    said: str = ""

    @property
    def peaks(self) -> list[int]:
        """The most memory in each quarter of the time."""
        parts: list[list[int]] = [[0], [0], [0], [0]]
        for at, size in self.memory:
            parts[min(int(4 * at / max(self.seconds, 1e-9)), 3)].append(size)
        return [max(part) for part in parts]


def write(folder: Path, gb: float) -> Store:
    """A store of one site of float16 rows, ``gb`` GB of them."""
    rows = int(gb * 1e9 / (2 * D_IN))
    world = SuperpositionWorld(d_in=D_IN, atoms=2 * D_IN, p=0.02)
    write_synthetic_store(
        folder, world, rows, dtype="float16", shard_rows=int(SHARD_BYTES / (2 * D_IN)),
        validation=0.02, test=0.0,
    )  # fmt: skip
    return open_store(folder)


def upload(server: S3Server, folder: Path) -> None:
    """Copy the store's files to the server, and begin its counts again."""
    server.make_bucket(BUCKET)
    with server.named_in(os.environ):
        there, path = fs.FileSystem.from_uri(server.uri(STORE))
        for file in sorted(path for path in folder.rglob("*") if path.is_file()):
            name = file.relative_to(folder)
            if not any(part.startswith(".") for part in name.parts):
                with there.open_output_stream(f"{path}/{name}") as stream:
                    stream.write(file.read_bytes())
    server.reset()


def recipe(folder: Path, name: str, args: argparse.Namespace, trials: int) -> dict[str, Any]:
    """The recipe of the sweep."""
    memory = int(args.gb * 1e9 / args.times)
    configs = [{"sae.d_sae": D_SAE, "sae.k": k} for k in range(2, 2 + trials)]
    return {
        "name": name, "runs_dir": str(folder / "runs"), "store": f"s3://{STORE}", "source": None,
        "atlas": {"enabled": False}, "records": {"mlflow": False},
        "training": {
            "epochs": args.epochs, "batch_size": BATCH, "lr": 1e-3, "evaluations": 2,
            "shuffle_rows": max(memory // (2 * D_IN * WINDOWS), 1024),
        },
        "sweep": {"sampler": "list", "configs": configs},
        "resources": {
            "reading": args.reading, "memory": memory, "max_concurrent": args.at_once,
            "cpus": args.cpus, "cpus_per_trial": args.cpus_per_trial,
        },
    }  # fmt: skip


def sweep(server: S3Server, folder: Path, asked: dict[str, Any]) -> Seen:
    """Run the sweep, and watch it."""
    config, cache = folder / f"{asked['name']}.yaml", folder / f"cache-{asked['name']}"
    config.write_text(yaml.safe_dump(asked))
    server.reset()
    seen, began = Seen(), time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "raysae.sweep", str(config)], text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        env={**os.environ, **server.environment, "RAYSAE_CACHE": str(cache)},
    )  # fmt: skip
    over = threading.Event()
    watch = threading.Thread(target=look, args=(process.pid, cache, seen, began, over))
    trials = folder / "runs" / asked["name"] / "trials"
    count = threading.Thread(target=follow, args=(server, trials, seen, over))
    watch.start()
    count.start()
    try:
        seen.said, _ = process.communicate()
    finally:
        over.set()
        watch.join()
        count.join()
        if process.poll() is None:
            process.terminate()
            process.wait()
    seen.code, seen.seconds = process.returncode, time.monotonic() - began
    seen.sent = server.bytes_of(STORE)
    seen.cache_files = len(files_in(cache))
    return seen


def look(driver: int, cache: Path, seen: Seen, began: float, over: threading.Event) -> None:
    """Measure memory and cache folder again and again, until ``over`` is set."""
    while not over.wait(SAMPLE_SECONDS):
        together = sum(memory_of(pid) for pid in (driver, *descendants(driver)))
        seen.memory.append((time.monotonic() - began, together))
        seen.cache_peak = max(seen.cache_peak, sum(map(size_of, files_in(cache))))


def follow(server: S3Server, trials: Path, seen: Seen, over: threading.Event) -> None:
    """Note how much the server has sent as trials are committed, until ``over`` is set."""
    while not over.wait(SAMPLE_SECONDS / 4):
        done = len(list(trials.glob("*/metrics.json")))
        seen.course[done if any(trials.glob("*")) else -1] = server.bytes_of(STORE)


def memory_of(pid: int) -> int:
    """Bytes of a process's memory, its part of what it shares with others; 0 when it has ended."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))


def size_of(file: Path) -> int:
    """Bytes of a file; 0 when it is gone."""
    try:
        return file.stat().st_size
    except OSError:
        return 0


def files_in(cache: Path) -> list[Path]:
    """Files of stores in the cache folder: shards and the like, not the marks of a copy."""
    return [
        path for path in cache.rglob("*") if path.is_file() and not path.name.startswith(".")
    ]  # fmt: skip


def states(folder: Path, name: str) -> str:
    """How many trials were committed."""
    return (
        f"{len(list((folder / 'runs' / name / 'trials').glob('*/metrics.json')))} trials committed"
    )


def told(store: Store, seen: Seen, what: str) -> float:
    """Print what one sweep took; returns how often it read the store."""
    size = store.training_bytes(store.sites[0])
    passes = seen.sent / size
    course = ", ".join(f"{done}: {sent / size:.2f}" for done, sent in sorted(seen.course.items()))
    cached = f"{seen.cache_files}, {seen.cache_peak / 1e6:,.1f}"
    rows = [
        ("sweep", what),
        ("exit code, seconds", f"{seen.code}, {seen.seconds:.1f}"),
        ("store, MB", f"{size / 1e6:,.1f}"),
        ("bytes from the server, MB", f"{seen.sent / 1e6:,.1f}"),
        ("passes", f"{passes:.2f}"),
        ("passes while so many were committed (-1: none begun)", course),
        ("cache folder: files afterwards, MB at most", cached),
        ("memory of all processes in each quarter, MB at most",
         ", ".join(f"{peak / 1e6:,.0f}" for peak in seen.peaks)),
    ]  # fmt: skip
    for name, value in rows:
        print(f"{name:52} {value}", flush=True)
    if seen.code:
        print(seen.said[-3000:])
    return passes


def main() -> int:
    """Print the table; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gb", type=float, default=0.5, help="size of the store (0.5)")
    parser.add_argument("--times", type=float, default=5.0, help="its size over the memory (5)")
    parser.add_argument("--reading", default="scan", help="resources.reading (scan)")
    parser.add_argument("--trials", type=int, default=8)
    parser.add_argument("--at-once", type=int, default=4)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--cpus", type=int, default=6, help="CPUs that Ray counts (6)")
    parser.add_argument("--cpus-per-trial", type=float, default=1.0)
    parser.add_argument("--rate", type=float, help="bytes a second of the server in all")
    parser.add_argument("--most", type=float, default=2.2, help="passes allowed (2.2)")
    parser.add_argument("--times-of-one", action="store_true", help="also time a single trial")
    parser.add_argument("--json", type=Path, help="a file for the figures")
    args = parser.parse_args()
    if reason := missing():
        print(f"error: {reason}", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as name, s3_server(args.rate) as server:
        return measure(server, Path(name), args)


def measure(server: S3Server, folder: Path, args: argparse.Namespace) -> int:
    """Write the store, upload it, run the sweeps; returns the exit code."""
    store = write(folder / "store", args.gb)
    upload(server, folder / "store")
    alone = None
    if args.times_of_one:
        alone = sweep(server, folder, recipe(folder, "one", args, 1))
        told(store, alone, f"one trial, {args.reading}; {states(folder, 'one')}")
    seen = sweep(server, folder, recipe(folder, "all", args, args.trials))
    what = f"{args.trials} trials, {args.at_once} at once, {args.reading}; {states(folder, 'all')}"
    passes = told(store, seen, what)
    if alone is not None:
        print(f"time of {args.trials} trials over that of one: {seen.seconds / alone.seconds:.2f}")
    if args.json:
        figures = {
            "passes": passes,
            "seconds": seen.seconds,
            "peaks": seen.peaks,
            "code": seen.code,
        }
        args.json.write_text(json.dumps(figures))
    return int(seen.code != 0 or passes > args.most or seen.cache_files > 0)


if __name__ == "__main__":
    sys.exit(main())
