"""Several nodes: a killed one costs nothing, and one that lacks the folders is named."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import raysae
from raysae.activations.synthetic import SuperpositionWorld, write_synthetic_store
from raysae.cluster import nodes

PROGRAM = Path(__file__).with_name("cluster_program.py")


@pytest.mark.long
def test_a_node_killed_in_mid_sweep_costs_nothing(tmp_path):
    world = SuperpositionWorld(d_in=32, atoms=64, p=0.05)
    write_synthetic_store(tmp_path / "home" / "store", world, 20_000, validation=0.1, test=0.0)
    home = tmp_path / "home"
    configs = [{"sae.d_sae": 64, "sae.k": k} for k in range(1, 7)]
    recipe = {
        "name": "cluster", "runs_dir": f"file://{home}/runs", "store": f"file://{home}/store",
        "source": None, "atlas": {"enabled": False}, "records": {"mlflow": False},
        "training": {"epochs": 30, "batch_size": 256, "lr": 3e-3, "evaluations": 4},
        "sweep": {"sampler": "list", "configs": configs},
        "resources": {"checkpoint_seconds": 0.5},
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, str(PROGRAM), json.dumps(recipe), str(home)],
        env={**os.environ, "RAYSAE_CACHE": str(home / "cache-driver")},
        check=False, capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    told = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("{")))
    assert (told["states"], told["failures"]) == (["done"] * 6, [])
    assert 2 <= told["committed"] < 6, "the node was killed in mid-sweep"
    assert Path(told["folder"]).is_relative_to(home / "cache-driver")
    done = {path.parent.name for path in (home / "runs/cluster/trials").glob("*/metrics.json")}
    assert len(done) == 6
    caches = [list(home.glob(f"cache-{n}/**/trials/*/metrics.json")) for n in range(3)]
    assert all(len(there) < 6 for there in caches), "no node has had all of them"


def test_a_node_that_does_not_see_a_folder_says_which(tmp_path):
    there = tmp_path / "token"
    there.touch()
    tokens = {tmp_path: there, tmp_path / "run": tmp_path / "run" / "token"}
    assert nodes.unseen(tokens) == [f"does not see {tmp_path / 'run'}"]


def test_blind_nodes_are_refused(tmp_path, connected_ray, monkeypatch):
    import ray

    here = ray.nodes()  # one machine that counts as two nodes
    monkeypatch.setattr(ray, "nodes", lambda: here * 2)
    nodes.check_nodes(tmp_path, None)
    with pytest.raises(raysae.UserError, match="does not see"):
        nodes.check_nodes(tmp_path, tmp_path / "no" / "manifest.json")
