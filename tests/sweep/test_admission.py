"""How much memory a trial takes: estimated where that is enough, seen in a worker where it is not."""

import pytest
import ray

from raysae.cluster.placement import MEMORY_SHARE, PROCESS
from raysae.config import parse_recipe
from raysae.errors import UserError
from raysae.sae import sae_config
from raysae.sweep.admission import admit, peak_memory
from raysae.sweep.estimate import Needs
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
        there = trials * (ESTIMATE + PROCESS) / MEMORY_SHARE
        monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 4.0, "memory": there})

    return of


def test_an_estimate_will_do_where_there_is_plenty(memory):
    memory(40)
    admitted = admit(RECIPE, WANTED)
    assert (admitted.placement.workers, admitted.memory, admitted.measured) == (4, ESTIMATE, False)


def test_memory_is_measured_in_a_worker_where_it_decides(memory):
    memory(3)
    admitted = admit(RECIPE, WANTED)
    assert admitted.measured
    assert 0.6 * ESTIMATE < admitted.memory < 1.4 * ESTIMATE
    needed = admitted.memory + PROCESS
    there = 3 * (ESTIMATE + PROCESS)
    assert admitted.placement.workers == min(there // needed, 4)
    assert "MiB a trial (measured)" in str(admitted)


def test_seeds_and_gangs_are_trained_together(connected_ray):
    measure = ray.remote(num_cpus=1, max_calls=1)(peak_memory)
    one, two = ray.get([measure.remote(LARGEST, D_IN, together) for together in (1, 2)])
    assert 1.6 * one < two < 2.4 * one


def test_what_cannot_be_trained_is_told_before_the_sweep(memory):
    memory(3)
    endless = sae_config({"d_sae": 10**9, "k": 16}), TRAINING
    with pytest.raises(
        UserError, match=r"d_sae 1,000,000,000, .* does not fit: .*fits, or a smaller"
    ):
        admit(RECIPE, Needs(D_IN, endless, 1, ESTIMATE, 0, 0))
