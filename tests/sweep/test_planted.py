"""A planted dictionary is found: a short version of scripts/planted_optima.py."""

import pytest

import raysae
from raysae.activations.synthetic import SuperpositionWorld, write_synthetic_store


@pytest.mark.long
def test_the_planted_size_and_activity_are_chosen(connected_ray, tmp_path):
    world = SuperpositionWorld(d_in=48, atoms=128, p=0.03, seed=100)
    write_synthetic_store(tmp_path / "store", world, 90_000, validation=0.1, test=0.0)
    space = {
        "sae.d_sae": {"low": 32, "high": 256, "powers_of_two": True},
        "sae.k": {"choices": [2, 4, 8, 16]},
    }
    result = raysae.sweep(
        {
            "name": "planted", "runs_dir": str(tmp_path / "runs"), "store": str(tmp_path / "store"),
            "source": None, "atlas": {"enabled": False}, "records": {"mlflow": False},
            "training": {"epochs": 3, "batch_size": 512, "lr": 1e-2, "evaluations": 1},
            "sweep": {"sampler": "grid", "trials": 16, "space": space, "seeds_per_trial": 2},
            "select": {"rule": "stable_knee"},
        }
    )  # fmt: skip
    assert result.failures == []
    config = result.sae.config
    assert config.d_sae == 128 and config.k in (2, 4, 8), result.selection["choice"]["reason"]
