"""How much memory a trial takes: estimated where that is enough, seen in a worker where it is not."""

from dataclasses import replace

import pytest
import ray
import torch

from raysae.activations import open_store
from raysae.activations.synthetic import SuperpositionWorld, write_synthetic_store
from raysae.cluster.placement import MEMORY_FRACTION, PROCESS, Placement
from raysae.config import parse_recipe
from raysae.errors import UserError
from raysae.pipeline.admission import BOUNDS, _held, _measured, admit, measured_training
from raysae.pipeline.estimate import Needs, needs
from raysae.sae import sae_config
from raysae.sae.topk import TopKSAE
from raysae.sites import Site
from raysae.training import Trainer, TrainingConfig
from raysae.training.memory import training_bytes
from raysae.training.rows import Rows
from tests.simulated_gpu import SimulatedGPU

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


@pytest.mark.long
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


def test_what_is_measured_sees_aux_k_and_real_rows(monkeypatch):
    """Every latent is dead; on a GPU the rows are held."""
    measured, seen = measured_training(TRAINING, 3), []
    noise = Rows(torch.randn(measured.tokens, 16))
    config = sae_config({"variant": "topk", "d_sae": 64, "k": 16})
    trainer = Trainer(config, replace(measured, compiled=False), noise, noise)
    aux_k = TopKSAE._aux_k
    monkeypatch.setattr(
        TopKSAE,
        "_aux_k",
        lambda self, *args: (seen.append(int(args[2].sum())), aux_k(self, *args))[1],
    )
    list(trainer.rounds())
    assert seen == [64] * 3
    gpu = SimulatedGPU(2**30).install(monkeypatch)
    monkeypatch.setattr(torch, "empty", lambda size, dtype, device: (size, device))
    assert _held(1000, "cuda") == (1000, "cuda")
    gpu.others = 2**30 - 1000
    assert _held(1000, "cuda") is None, "they would stay in memory"
    assert _held(1000, "cpu") is None


def test_rows_of_the_sweeps_sites_are_counted(tmp_path):
    world = SuperpositionWorld(d_in=8, atoms=12)
    write_synthetic_store(tmp_path / "store", world, 500, validation=0.2, test=0.1)
    store, site = open_store(tmp_path / "store"), Site(0, "all")
    rows = store.entry(site).rows
    found = needs(RECIPE, store, 1, [site])
    assert found.row_bytes == (rows.train + rows.validation) * store.row_bytes
