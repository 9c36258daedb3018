"""A trial of a wave is killed while memory holds back the scan that both read: the same bits."""

import threading
import time

import pytest

import raysae
from raysae.activations.synthetic import SuperpositionWorld, write_synthetic_store
from raysae.records.commit import VOLATILE_COLUMNS
from tests.processes import kill, processes_below

CONFIGS = [{"sae.d_sae": 24, "sae.k": k} for k in (1, 2)]


def recipe(folder, name):
    """Two trials at a time, in a memory of a few windows."""
    return {
        "name": name, "store": str(folder / "store"), "runs_dir": str(folder / "runs"),
        "source": None, "atlas": {"enabled": False}, "records": {"mlflow": False},
        "training": {
            "epochs": 2, "batch_size": 16, "lr": 3e-3, "evaluations": 4, "shuffle_rows": 512,
        },
        "sweep": {"sampler": "list", "configs": CONFIGS},
        "resources": {"checkpoint_seconds": 0.05, "reading": "scan", "memory": 120_000},
    }  # fmt: skip


def products(result):
    rows = [{k: v for k, v in row.items() if k not in VOLATILE_COLUMNS} for row in result.trials]
    files = sorted(result.folder.glob("trials/**/sae.safetensors"))
    return rows, [path.read_bytes() for path in files]


@pytest.mark.long
def test_a_killed_trial_of_a_wave_costs_nothing(connected_ray, tmp_path):
    world = SuperpositionWorld(d_in=16, atoms=24, p=0.08)
    write_synthetic_store(tmp_path / "store", world, 3000, validation=0.1, test=0.0)
    killed = []

    def kill_one():
        folder, until = tmp_path / "runs" / "storm" / "trials", time.monotonic() + 120
        while not list(folder.glob("*.training/*")) and time.monotonic() < until:
            time.sleep(0.01)
        killed.extend(pid for pid in processes_below(b"ray::SAETrials")[:1] if kill(pid))

    beside = threading.Thread(target=kill_one)
    beside.start()
    storm = raysae.sweep(recipe(tmp_path, "storm"))
    beside.join()
    peace = raysae.sweep(recipe(tmp_path, "peace"))
    assert len(killed) == 1 and not storm.failures
    assert products(storm) == products(peace)
