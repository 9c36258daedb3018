"""Four trials on quarters of a GPU: real bookkeeping of a logical GPU, and one copy of the rows."""

import json
import subprocess
import sys

import pytest

import raysae
from raysae.activations.synthetic import SuperpositionWorld, write_synthetic_store
from raysae.sites import Site

SCRIPT = """
import json, sys, threading, time
from raysae.console.quiet import quiet_environment
quiet_environment()
import os
os.environ["RAYSAE_LOGICAL_GPUS"] = "1"
import ray
ray.init("local", num_cpus=4, num_gpus=1, include_dashboard=False, log_to_driver=False)
import raysae
before, seen, over = ray.available_resources(), [], threading.Event()
def watch():
    while not over.wait(0.1):
        now = ray.available_resources()
        used = {key: before[key] - now.get(key, 0) for key in ("GPU", "object_store_memory")}
        seen.append((used["GPU"], used["object_store_memory"]))
watcher = threading.Thread(target=watch)
watcher.start()
result = raysae.sweep(json.loads(sys.argv[1]))
over.set()
watcher.join()
print(json.dumps({"failures": result.failures, "states": [row["state"] for row in result.trials],
                  "gpus": max(g for g, _ in seen), "held": max(b for g, b in seen if g == 1)}))
"""


@pytest.mark.long
def test_a_quarter_of_a_gpu_a_trial_and_one_copy_of_the_rows(tmp_path):
    world = SuperpositionWorld(d_in=256, atoms=300)
    write_synthetic_store(tmp_path / "store", world, 20_000, validation=0.2, test=0.0)
    recipe = {
        "name": "quarters", "runs_dir": str(tmp_path / "runs"), "store": str(tmp_path / "store"),
        "source": None, "records": {"mlflow": False}, "atlas": {"enabled": False},
        "training": {"epochs": 2, "batch_size": 512},
        "sweep": {"sampler": "list", "configs": [{"sae.d_sae": 64, "sae.k": k} for k in (1, 2, 3, 4)]},
        "resources": {"gpus_per_trial": 0.25},
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps(recipe)],
        capture_output=True, text=True, timeout=900, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    assert "4 at once, 1 CPU and 0.25 GPU each" in done.stdout
    told = json.loads(done.stdout.splitlines()[-1])
    assert (told["failures"], told["states"]) == ([], ["done"] * 4)
    assert told["gpus"] == pytest.approx(1), "all four were at work"
    store = raysae.open_store(tmp_path / "store")
    one_copy, truth = store.training_bytes(Site(0, "all")), store.known_truth()
    assert truth is not None
    known = sum(tensor.nbytes for tensor in truth if tensor is not None)
    assert one_copy <= told["held"] < 1.5 * one_copy + known, "the rows once, and the truth once"
