"""A frozen decoder: the dictionary stays as it was drawn, whatever trains the SAE; the rest learns."""

import pytest
import torch

import raysae
from raysae.activations.synthetic import SuperpositionWorld
from raysae.errors import UserError
from raysae.sae import build_sae
from raysae.sae.config import CONFIGS, TopKConfig
from raysae.training import Trainer, TrainingConfig
from raysae.training.checkpoint import load_training, save_training
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


def test_many_at_once_give_the_same_bits_as_one_also_where_others_are_packed(rows):
    configs = [TopKConfig(d_sae=32, k=k) for k in (2, 4)]
    trainings = [FROZEN, QUICK]
    packed = raysae.fit_many(
        configs, rows, trainings, validation=rows[:200], pack=True, progress=False
    )
    alone = raysae.fit(configs[0], rows, FROZEN, validation=rows[:200], progress=False)
    assert packed[0].metrics == alone.metrics
    assert torch.equal(packed[0].sae.W_enc, alone.sae.W_enc)
    assert not torch.equal(packed[1].sae.W_dec, packed[0].sae.W_dec)


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
