"""A trial's trainings, one for each site and seed: means, the worst site, agreement, going on."""

import pytest
import torch

from raysae.activations.synthetic import SuperpositionWorld
from raysae.sae import sae_config
from raysae.sites import Site
from raysae.sweep.members import Members
from raysae.training import Trainer, TrainingConfig
from raysae.training.rows import Rows

HERE, THERE = Site(0, "all"), Site(1, "all")
TRAINING = TrainingConfig(epochs=6, batch_size=64, lr=3e-3, evaluations=4)
WORLD = SuperpositionWorld(d_in=16, atoms=24, p=0.08)


def trainers(sites=(HERE,), seeds=(0,)):
    config = sae_config({"variant": "topk", "d_sae": 24, "k": 2})
    return {
        (site, seed): Trainer(
            config, TRAINING, Rows(WORLD.rows(500, 2 * site.layer)),
            Rows(WORLD.rows(200, 2 * site.layer + 1)), seed=seed,
        )
        for site in sites
        for seed in seeds
    }  # fmt: skip


def test_one_member_is_the_training_itself(tmp_path):
    members = Members(trainers(), tmp_path / "kept", 60)
    records = list(members.rounds())
    (alone,) = trainers().values()
    assert records == list(alone.rounds()) == members.history
    assert members.final_metrics() == alone.final_metrics()
    assert not (tmp_path / "kept").exists()


def test_figures_are_means_with_the_worst_site(tmp_path):
    members = Members(trainers((HERE, THERE), (0, 1)), tmp_path, 60)
    list(members.rounds())
    figures = members.final_metrics()
    each = {key: t.final_metrics()["explained_variance"] for key, t in members.trainers.items()}
    assert figures["explained_variance"] == pytest.approx(sum(each.values()) / 4)
    by_site = [(each[site, 0] + each[site, 1]) / 2 for site in (HERE, THERE)]
    assert figures["explained_variance_worst"] == pytest.approx(min(by_site))
    assert 0 < figures["stability"] < 1
    assert members.cost["tokens_trained"] == 4 * 6 * 500


def test_stability_is_that_of_the_saes(tmp_path):
    import raysae

    members = Members(trainers(seeds=(0, 1)), tmp_path, 60)
    list(members.rounds())
    one, other = (trainer.sae() for trainer in members.trainers.values())
    expected = raysae.stability(one, other, WORLD.rows(200, 1))
    assert members.final_metrics()["stability"] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("seeds", [(0,), (0, 1)])
@pytest.mark.parametrize("steps", [3, 20, 31])
def test_what_was_cut_off_goes_on_to_the_same_bits(tmp_path, seeds, steps):
    whole = Members(trainers(seeds=seeds), tmp_path / "whole", 60)
    records = list(whole.rounds())

    class CutOffError(Exception):
        pass

    made = 0

    def cut_off():
        nonlocal made
        made += 1
        if made > steps:
            raise CutOffError

    begun = Members(trainers(seeds=seeds), tmp_path / "kept", 0, cut_off)
    with pytest.raises(CutOffError):
        list(begun.rounds())
    again = Members(trainers(seeds=seeds), tmp_path / "kept", 60)
    assert 0 < again.share < 1
    list(again.rounds())
    assert again.history == records
    for key, trainer in whole.trainers.items():
        for name, tensor in trainer.model.state_dict().items():
            assert torch.equal(again.trainers[key].model.state_dict()[name], tensor)
    again.forget()
    assert not (tmp_path / "kept").exists()
