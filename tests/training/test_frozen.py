"""A frozen decoder: the dictionary stays as it was drawn, whatever trains the SAE; the rest learns."""

from dataclasses import replace

import pytest
import torch

import raysae
from raysae.activations.synthetic import SuperpositionWorld
from raysae.errors import UserError
from raysae.sae import build_sae
from raysae.sae.config import CONFIGS, TopKConfig
from raysae.training import Trainer, TrainingConfig
from raysae.training.checkpoint import load_training, save_training
from raysae.training.ensemble import Ensemble, Member
from raysae.training.rows import Rows

QUICK = TrainingConfig(epochs=3, batch_size=64, lr=1e-2, evaluations=4)
FROZEN = TrainingConfig(epochs=3, batch_size=64, lr=1e-2, evaluations=4, frozen="decoder")


@pytest.fixture(scope="module")
def rows():
    return SuperpositionWorld(d_in=16, atoms=32, p=0.1).rows(1000)


@pytest.mark.parametrize("variant", CONFIGS)
def test_the_dictionary_stays_as_drawn_and_the_encoder_learns(rows, variant):
    config = CONFIGS[variant](d_sae=32, **({"k": 4} if "k" in CONFIGS[variant]().__dict__ else {}))
    fit = raysae.fit(config, rows, FROZEN, validation=rows[:200], seed=3, progress=False)
    drawn = build_sae(config, 16, 3)
    assert torch.equal(fit.sae.W_dec, drawn.W_dec)
    assert not torch.allclose(fit.sae.W_enc, drawn.W_enc)
    assert fit.history[-1]["explained_variance"] > fit.history[0]["explained_variance"]
    assert fit.sae.metadata["training"]["frozen"] == "decoder"


def test_it_explains_less_than_a_dictionary_that_learns(rows):
    config = TopKConfig(d_sae=32, k=4)
    learned, frozen = (
        raysae.fit(config, rows, training, validation=rows[:200], progress=False)
        for training in (QUICK, FROZEN)
    )
    assert frozen.metrics["explained_variance"] < learned.metrics["explained_variance"] - 0.1
    assert frozen.sae.metadata["training"]["trained_by"] == "torch"


def many(configs, rows, trainings, pack):
    return raysae.fit_many(
        configs, rows, trainings, validation=rows[:200], seeds=list(range(len(configs))), pack=pack,
        progress=False,
    )  # fmt: skip


@pytest.mark.parametrize("variant", ["topk", "batch_topk"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_packs_of_frozen_ones_are_members_alone_to_the_bit(rows, variant, precision):
    """Also beside others that learn, with latents that AuxK revives."""
    shape, config = {"d_sae": 32, "aux_coefficient": 0.5}, CONFIGS[variant]
    training = replace(FROZEN, precision=precision, aux_window_tokens=64)
    trainings = [training, replace(training, frozen=None), training]
    configs = [config(k=k, **shape) for k in (2, 4, 5)]
    packed = many(configs, rows, trainings, pack=True)
    plain = many(configs, rows, trainings, pack=False)
    for number, one in enumerate(packed):
        (alone,) = raysae.fit_many(
            [configs[number]], rows, trainings[number], validation=rows[:200], seeds=[number],
            pack=True, progress=False,
        )  # fmt: skip
        for name, weight in one.sae.state_dict().items():
            assert torch.equal(weight, alone.sae.state_dict()[name]), name
        assert one.metrics == alone.metrics
        assert one.sae.metadata["training"]["trained_by"] == "pack"
        drawn = build_sae(configs[number], 16, number).W_dec
        assert torch.equal(one.sae.W_dec, drawn) == (number != 1)
        apart = one.metrics["explained_variance"] - plain[number].metrics["explained_variance"]
        assert abs(apart) < (1e-3 if precision == "float32" else 2e-2)


def test_a_pack_of_frozen_ones_is_saved_and_goes_on_to_the_same_bits(rows, tmp_path):
    def member(folder=None):
        source = Rows([rows])
        return Member(
            TopKConfig(d_sae=32, k=4), FROZEN, source, Rows([rows[:200]]), 0, None, folder
        )

    whole, cut = member(), member(tmp_path / "saved")
    list(Ensemble([whole], pack=True).rounds())
    rounds = Ensemble([cut], pack=True, checkpoint_seconds=0).rounds()
    next(rounds)
    rounds.close()
    again = member(tmp_path / "saved")
    list(Ensemble([again], pack=True).rounds())
    assert again.history == whole.history
    assert torch.equal(again.trainer.model.W_enc, whole.trainer.model.W_enc)
    assert not again.trainer.model.W_dec.requires_grad


def test_a_checkpoint_goes_on_to_the_same_bits(rows, tmp_path):
    def trainer(training=FROZEN):
        source = Rows([rows])
        return Trainer(TopKConfig(d_sae=32, k=4), training, source, Rows([rows[:200]]))

    whole = trainer()
    list(whole.rounds())
    first, again = trainer(), trainer()
    next(first.rounds())
    save_training(first, tmp_path / "saved")
    load_training(again, tmp_path / "saved")
    list(again.rounds())
    for name, tensor in whole.sae().state_dict().items():
        assert torch.equal(tensor, again.sae().state_dict()[name])
    with pytest.raises(UserError, match=r"training\.frozen is decoder, now None"):
        load_training(trainer(QUICK), tmp_path / "saved")


def test_what_can_be_frozen():
    with pytest.raises(ValueError, match="frozen is 'encoder'; it is decoder, or null"):
        TrainingConfig(frozen="encoder")
