"""The whole R3 sweep, compared with bare training loops of its eight configs.

    python scripts/bench_sweep.py [--repeats 3]

The store is synthetic and has R3's shape: 72 sites of 800 training rows (d_in 768). A sweep is the
whole command in a separate process, with Ray's start, but without extraction, atlas and MLflow. A
loop makes only the updates of one config, on batches prepared before, with all threads. For
comparison, a Ray Tune run of eight trials that import torch and do nothing shows the cost of Ray
alone. The exit code is 1 when the sweep takes more than 1.25 times the sum of the loops plus 10
seconds.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
import yaml
from machine import machine

import raysae
from raysae.activations import Site
from raysae.activations.synthetic import SuperpositionWorld, write_synthetic_store
from raysae.console.quiet import QUIET_ENVIRONMENT
from raysae.records.tables import read_table
from raysae.sae import build_sae, sae_config
from raysae.training import TrainingConfig
from raysae.training.compiled import step_of
from raysae.training.rows import Rows

CONFIGS = [
    (512, 150), (512, 100), (384, 75), (256, 75), (256, 50), (192, 40), (256, 30), (192, 20),
]  # fmt: skip
SITES, ROWS, EPOCHS, BATCH, LR = 72, 1000, 25, 256, 1e-3
ALLOWED, START = 1.25, 10.0


NOTHING = """
import sys
import ray
import torch
from ray import tune
class Nothing(tune.Trainable):
    def setup(self, config):
        import torch
    def step(self):
        return {"done": True}
    def reset_config(self, new_config):
        return True
ray.init("local", include_dashboard=False, log_to_driver=False)
tune.Tuner(
    tune.with_resources(Nothing, {"cpu": 1}),
    param_space={"number": tune.grid_search(list(range(8)))},
    tune_config=tune.TuneConfig(max_concurrent_trials=2, reuse_actors=True),
    run_config=tune.RunConfig(storage_path=sys.argv[1], verbose=0, log_to_file=False),
).fit()
ray.shutdown()
"""
"""A program that runs eight trials on Ray Tune without any training."""


def nothing(folder: Path, number: int) -> float:
    """Seconds of a Ray Tune run that trains nothing."""
    started = time.perf_counter()
    subprocess.run(
        [sys.executable, "-c", NOTHING, str(folder / f"nothing-{number}")],
        check=True, capture_output=True, env={**os.environ, **QUIET_ENVIRONMENT},
    )  # fmt: skip
    return time.perf_counter() - started


def loops(store: Path) -> float:
    """Seconds of the eight bare loops together."""
    rows = Rows(raysae.open_store(store).train(Site(8, "all")).float())
    drawn = [batch for epoch in range(EPOCHS) for batch in rows.epoch(0, epoch, BATCH)]
    training = TrainingConfig(epochs=EPOCHS, batch_size=BATCH, lr=LR)
    seconds = 0.0
    for d_sae, k in CONFIGS:
        config = sae_config({"variant": "topk", "d_sae": d_sae, "k": k})
        model = build_sae(config, rows.d_in, 0)
        step = step_of(model, training, "cpu")
        started = time.perf_counter()
        for number, x_BD in enumerate(drawn):
            step.gradients(x_BD, None, 1.0)
            step.update(LR * training.lr_fraction(number, len(drawn)))
        seconds += time.perf_counter() - started
    return seconds


def sweep(folder: Path, name: str) -> tuple[float, float]:
    """Seconds of the whole command, and of its sweep stage alone."""
    recipe = {
        "name": name, "runs_dir": str(folder / "runs"), "store": str(folder / "store"), "source": None,
        "training": {"epochs": EPOCHS, "batch_size": BATCH, "lr": LR},
        "sweep": {
            "layer": 8, "position": "all", "sampler": "list",
            "configs": [{"sae.d_sae": d_sae, "sae.k": k} for d_sae, k in CONFIGS],
        },
        "select": {"rule": "max_ev"}, "atlas": {"enabled": False}, "records": {"mlflow": False},
    }  # fmt: skip
    config = folder / f"{name}.yaml"
    config.write_text(yaml.safe_dump(recipe))
    started = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "raysae.sweep", str(config)], check=True, capture_output=True
    )
    seconds = time.perf_counter() - started
    rows = read_table(folder / "runs" / name / "trials.parquet")
    assert [row["state"] for row in rows] == ["done"] * len(CONFIGS)
    stage = json.loads((folder / "runs" / name / "status.json").read_text())["stages"]["sweep"]
    return seconds, stage["ended"] - stage["started"]


def main() -> int:
    """Print the times; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    print(f"{machine('cpu')}, {torch.get_num_threads()} threads; medians of {args.repeats}")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        world = SuperpositionWorld(d_in=768, atoms=1024, p=0.02)
        write_synthetic_store(folder / "store", world, ROWS, sites=SITES, validation=0.2, test=0.0)
        loops(folder / "store")  # builds the kernels and fills the caches
        runs = [
            (loops(folder / "store"), nothing(folder, n), *sweep(folder, f"r3-{n}"))
            for n in range(args.repeats)
        ]
    bare, empty, whole, stage = (statistics.median(column) for column in zip(*runs, strict=True))
    allowed = ALLOWED * bare + START
    print(f"eight bare loops {bare:.2f} s; sweep stage {stage:.2f} s; whole command {whole:.2f} s")
    print(f"a bare Ray Tune run of eight trials that do nothing {empty:.2f} s")
    print(f"over the loops: {whole - bare:.2f} s; allowed {allowed:.2f} s in all")
    return 0 if whole <= allowed else 1


if __name__ == "__main__":
    sys.exit(main())
