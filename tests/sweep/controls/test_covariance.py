"""PCA against numpy's, and Gaussian rows that have the covariance of others and nothing else."""

import math

import numpy as np
import pytest
import torch

import raysae
from raysae.activations.synthetic import SuperpositionWorld
from raysae.sweep.controls.covariance import Covariance, GaussianRows, components_to_reach
from raysae.training.rows import Rows


@pytest.fixture(scope="module")
def world():
    return SuperpositionWorld(d_in=12, atoms=24, p=0.1).rows(6000) + 300.0


def test_the_covariance_is_numpys_though_the_mean_is_far_larger(world):
    found = Covariance.of_rows(Rows([world[:2000], world[2000:]]))
    assert found.rows == 6000
    assert np.allclose(found.mean_D, world.double().numpy().mean(axis=0))
    again = found.vectors_DD @ torch.diag(found.values_D) @ found.vectors_DD.T
    assert np.allclose(again, np.cov(world.double().numpy().T, bias=True), atol=1e-9)
    assert (found.values_D.diff() <= 0).all()


def test_explained_variance_by_components_is_that_of_the_projection(world):
    train, held = world[:5000], world[5000:].double()
    explained = Covariance.of_rows(Rows(train)).explained(Rows(held))
    centred = train.double() - train.double().mean(dim=0)
    _, _, vectors = torch.linalg.svd(centred, full_matrices=False)
    total = (held - held.mean(dim=0)).square().sum()
    for count in (0, 3, 12):
        offset = held - train.double().mean(dim=0)
        left = offset - offset @ vectors[:count].T @ vectors[:count]
        assert explained[count] == pytest.approx(float(1 - left.square().sum() / total), abs=1e-9)
    assert len(explained) == 13 and explained[12] == pytest.approx(1)
    assert components_to_reach(explained, explained[5]) == 5
    assert components_to_reach(explained, explained[5] + 1e-6) == 6
    assert components_to_reach(explained, 1.1) is None
    assert components_to_reach([math.nan, math.nan], 0.5) is None


def test_gaussian_rows_have_the_covariance_and_the_same_bits_however_they_are_read(world):
    like = Covariance.of_rows(Rows(world))
    rows = GaussianRows(like, 20_000, seed=3)
    again = Covariance.of_rows(rows)
    assert torch.allclose(again.mean_D, like.mean_D, atol=0.03)
    assert torch.allclose(again.values_D, like.values_D, rtol=0.1)
    whole = rows.read(0, 20_000)
    assert torch.equal(torch.cat(list(rows.batches(777))), whole)
    assert torch.equal(rows.read(4000, 9000), whole[4000:9000])
    assert torch.equal(torch.cat(list(rows.epoch(0, 0, 300, 5000))).sort(0)[0], whole.sort(0)[0])
    past = torch.cat(list(rows.epoch(0, 0, 300, 20_000, taken=700)))
    assert torch.equal(past, whole[700:])
    assert not torch.equal(GaussianRows(like, 20_000, seed=3, stream=1).read(0, 9), whole[:9])
    assert not torch.equal(GaussianRows(like, 20_000, seed=4).read(0, 9), whole[:9])


def test_a_dictionary_is_learned_from_a_world_but_not_from_its_covariance(world):
    config, training = {"d_sae": 24, "k": 3}, {"epochs": 6, "batch_size": 128, "lr": 3e-3}
    like = Covariance.of_rows(Rows(world[:5000]))
    pairs = [(world[:5000], world[5000:])]
    pairs += [(GaussianRows(like, 5000, 0), GaussianRows(like, 1000, 0, stream=1))]
    learned, control = (
        raysae.fit(config, train, training, validation=held, progress=False).metrics["fvu"]
        for train, held in pairs
    )
    assert learned < 0.8 * control
