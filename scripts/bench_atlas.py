"""A whole atlas against the bare training loops of its SAEs, and a large one against its stated memory.

    python scripts/bench_atlas.py [r3] [r1] [--rows 4000]

Each case is ``python -m raysae.atlas`` in a process of its own, on a synthetic store, without the
analysis of its features (``scripts/bench_analysis.py`` has that):

- r3: 72 sites (12 layers, 6 positions) of 800 training rows, d_in 768, d_sae 512, K 150, 25 epochs of
  batches of 256. Beside it the updates alone, on batches prepared before, an SAE a core, all cores busy.
  Every SAE is then loaded by ``raysae.open_atlas`` and evaluated again on its validation rows.
- r1: 24 layers, d_in 1,024, d_sae 5,120, one epoch of ``--rows`` rows of batches of 128. Its dry run is
  printed, and the most memory that a worker had to itself beside what the dry run counts for it.

The exit code is 1 when r3 takes more than 1.3 times the loops plus 10 seconds, an SAE does not load or
its explained variance is not the recorded one, or a worker of r1 takes more than is stated.
"""

import argparse
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import torch
import yaml
from bench_packing import bare_loop, batches_of, settings
from machine import machine

import raysae
from raysae.activations.synthetic import SuperpositionWorld, write_synthetic_store
from raysae.cluster.placement import PROCESS
from raysae.records.tables import read_table

ALLOWED, START = 1.3, 10.0
R3 = {
    "sae": {"variant": "topk", "d_sae": 512, "k": 150},
    "training": {"epochs": 25, "batch_size": 256, "lr": 1e-3, "evaluations": 1},
}  # fmt: skip
R1 = {
    "sae": {"variant": "topk", "d_sae": 5120, "k": 64},
    "training": {"epochs": 1, "batch_size": 128, "lr": 1e-4, "evaluations": 1},
}  # fmt: skip


def recipe(folder: Path, name: str, **settings: Any) -> Path:
    """A config file of an atlas in ``folder``."""
    file = folder / f"{name}.yaml"
    place = {"runs_dir": str(folder / "runs"), "store": str(folder / name), "source": None}
    kept = {"records": {"mlflow": False}, "analyze": {"phases": []}}
    whole = {"name": name, **place, **kept, **settings}
    file.write_text(yaml.safe_dump(whole))
    return file


class Memory:
    """The most bytes that a worker below this process had to itself, looked at twice a second."""

    def __init__(self) -> None:
        self.most, self._end = 0, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "Memory":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._end.wait(0.5):
            for process in psutil.Process().children(recursive=True):
                try:
                    if "ray::PoolWorker" in " ".join(process.cmdline()):
                        self.most = max(self.most, process.memory_full_info().uss)
                except psutil.Error:  # it has ended
                    continue


def atlas(config: Path, *more: str) -> tuple[float, str]:
    """Seconds of the whole command, and what it prints."""
    command = [sys.executable, "-m", "raysae.atlas", str(config), *more]
    started = time.perf_counter()
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return time.perf_counter() - started, done.stdout


def loops(store: Path) -> float:
    """Seconds of the updates of all sites alone."""
    opened = raysae.open_store(store)
    data = [batches_of(opened.train(site).float()) for site in opened.sites]
    training = settings("float32")
    bare_loop(data[:2], training, "cpu", 1)  # builds the kernels and fills the caches
    started = time.perf_counter()
    bare_loop(data, training, "cpu", torch.get_num_threads())
    return time.perf_counter() - started


def differences(run: Path, store: Path) -> list[float]:
    """How far the explained variance of each SAE, loaded and evaluated anew, is from its record."""
    opened, found = raysae.open_store(store), raysae.open_atlas(run)
    apart = []
    for row in found.metrics:
        site = row.site
        x_ND = opened.validation(site).float()
        error_ND = x_ND - found[site].reconstruct(x_ND)[0]
        residual, spread = error_ND.double().square().sum(), (x_ND - x_ND.mean(0)).double().square()
        apart.append(abs(float(1 - residual / spread.sum()) - row["explained_variance"]))
    return apart


def r3(folder: Path, args: argparse.Namespace) -> bool:
    """72 sites of R3's shape."""
    write_synthetic_store(
        folder / "r3", SuperpositionWorld(d_in=768, atoms=1024, p=0.02), 1000, sites=72,
        validation=0.2, test=0.0,
    )  # fmt: skip
    bare = loops(folder / "r3")
    seconds, _ = atlas(recipe(folder, "r3", **R3))
    apart = differences(folder / "runs" / "r3", folder / "r3")
    allowed = ALLOWED * bare + START
    print(
        f"r3: 72 bare loops {bare:.1f} s; the whole command {seconds:.1f} s, allowed {allowed:.1f} s"
    )
    print(
        f"r3: {len(apart)} SAEs loaded; explained variance at most {max(apart):.1e} from its record"
    )
    return seconds <= allowed and len(apart) == 72 and max(apart) < 1e-5


def r1(folder: Path, args: argparse.Namespace) -> bool:
    """24 layers of R1's shape, with fewer tokens."""
    write_synthetic_store(
        folder / "r1", SuperpositionWorld(d_in=1024, atoms=2048, p=0.02), args.rows, sites=24,
        validation=0.05, test=0.0,
    )  # fmt: skip
    config = recipe(folder, "r1", **R1)
    print(atlas(config, "--dry-run")[1])
    with Memory() as memory:
        seconds, _ = atlas(config)
    rows = read_table(folder / "runs" / "r1" / "atlas" / "metrics.parquet")
    stated = PROCESS + rows[0]["training_bytes"]
    each = sum(row["seconds"] for row in rows) / len(rows)
    print(f"r1: {len(rows)} SAEs in {seconds:.1f} s, {each:.1f} s each on a core")
    print(
        f"r1: a worker had at most {memory.most / 1e9:.2f} GB to itself; stated {stated / 1e9:.2f} GB"
    )
    return memory.most <= stated and all(row["state"] == "done" for row in rows)


def main() -> int:
    """Run the cases; returns the exit code."""
    cases = {"r3": r3, "r1": r1}
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"of {', '.join(cases)}")
    parser.add_argument("--rows", type=int, default=4000, help="rows a site of r1")
    args = parser.parse_args()
    print(f"{machine('cpu')}, {torch.get_num_threads()} threads")
    met = []
    for case in args.cases or cases:
        with tempfile.TemporaryDirectory() as temporary:
            met.append(cases[case](Path(temporary), args))
    return int(not all(met))


if __name__ == "__main__":
    sys.exit(main())
