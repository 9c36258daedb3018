"""How much memory a trial takes: estimated where that is enough, seen in a worker where it is not."""

from dataclasses import replace

import pytest
import ray
import torch

from raysae.cluster.placement import MEMORY_FRACTION, PROCESS, Placement
from raysae.config import parse_recipe
from raysae.errors import UserError
from raysae.pipeline.admission import BOUNDS, _measured, admit
from raysae.pipeline.estimate import Needs
from raysae.sae import sae_config
from raysae.training import TrainingConfig
from raysae.training.memory import training_bytes

D_IN, D_SAE = 512, 8192
TRAINING = TrainingConfig(batch_size=256)
ESTIMATE = training_bytes(D_IN, D_SAE, TRAINING)
LARGEST = sae_config({"d_sae": D_SAE, "k": 16}), TRAINING
WANTED = Needs(D_IN, LARGEST, 1, ESTIMATE, 0, 0)
RECIPE = parse_recipe({"source": None, "store": "store"})


@pytest.fixture
def memory(connected_ray, monkeypatch):
    """Sets the memory that Ray says it has, in what a trial takes by the estimate."""

    def of(trials):
        there = trials * (ESTIMATE + PROCESS) / MEMORY_FRACTION
        monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 4.0, "memory": there})

    return of


def test_an_estimate_will_do_where_there_is_plenty(memory):
    memory(40)
    admitted = admit(RECIPE, WANTED)
    assert (admitted.placement.workers, admitted.memory, admitted.measured) == (4, ESTIMATE, False)


@ray.remote(num_cpus=1)
def busy():
    return float(torch.ones(100_000_000).sum())


def test_memory_is_measured_in_a_worker_where_it_decides(memory):
    ray.get([busy.remote() for _ in range(4)])  # workers that have held more than a trial takes
    memory(3)
    admitted = admit(RECIPE, WANTED)
    assert admitted.measured
    assert BOUNDS[0] * ESTIMATE < admitted.memory < BOUNDS[1] * ESTIMATE
    needed = admitted.memory + PROCESS
    there = 3 * (ESTIMATE + PROCESS)
    assert admitted.placement.workers == min(there // needed, 4)
    assert "MiB a trial (measured)" in str(admitted)


def test_seeds_and_gangs_are_trained_together(connected_ray):
    one, two = (
        _measured(RECIPE.resources, Placement(1, 0, 1), replace(WANTED, trained_together=together))
        for together in (1, 2)
    )
    assert 1.3 * one < two < 2.2 * one


def test_what_cannot_be_trained_is_told_before_the_sweep(memory):
    memory(3)
    endless = sae_config({"d_sae": 10**9, "k": 16}), TRAINING
    with pytest.raises(
        UserError, match=r"d_sae 1,000,000,000, .* does not fit: .*fits, or a smaller"
    ):
        admit(RECIPE, Needs(D_IN, endless, 1, ESTIMATE, 0, 0))
