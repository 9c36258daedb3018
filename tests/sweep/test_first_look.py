"""The first look over K: trials from one HierarchicalTopK SAE for each d_sae and seed."""

import pytest

import raysae
from raysae.activations.synthetic import SuperpositionWorld
from raysae.config.search import SelectConfig
from raysae.sweep.first_look import first_look
from raysae.sweep.selection.rules import select
from raysae.training import TrainingConfig
from raysae.training.rows import Rows


@pytest.fixture(scope="module")
def looked():
    world = SuperpositionWorld(d_in=12, atoms=16, p=0.1)
    x = world.rows(2400)
    training = TrainingConfig(epochs=3, batch_size=128, lr=3e-3, evaluations=1)
    rows = first_look(Rows(x[:2000]), Rows(x[2000:]), training, (16, 4), (1, 2, 4, 8))
    return x, training, rows


def test_every_k_that_a_dictionary_allows_is_a_trial(looked):
    _, training, rows = looked
    assert [(row.d_sae, row.k) for row in rows] == [
        (4, 1), (4, 2), (4, 4), (16, 1), (16, 2), (16, 4), (16, 8),
    ]  # fmt: skip
    assert [row.trial for row in rows] == list(range(7))
    assert sum(row["tokens_trained"] for row in rows) == 4 * training.training_tokens(2000)
    for row in rows:
        assert 0 < row.l0 <= row.k and 0 <= row.dead_fraction < 1
        assert row.stability > row["stability_chance"] - 0.2


def test_its_explained_variance_is_near_that_of_a_topk(looked):
    x, training, rows = looked
    for row in rows[-2:]:
        fit = raysae.fit(
            {"d_sae": row.d_sae, "k": row.k},
            x[:2000],
            training,
            validation=x[2000:],
            progress=False,
        )
        assert row.explained_variance == pytest.approx(fit.metrics["explained_variance"], abs=0.1)


def test_the_rules_choose_among_its_trials(looked):
    choices = select(looked[2], SelectConfig(ev_floor=0.1))["choices"]
    assert choices["auto"]["trial"] is not None and choices["max_ev"]["trial"] in (5, 6)
