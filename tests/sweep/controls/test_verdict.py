"""The verdict: noise is called noise, features are not, and nothing is claimed without figures."""

import math
from dataclasses import replace

import pytest
import torch

from raysae.activations.synthetic import SuperpositionWorld
from raysae.sae.config import TopKConfig
from raysae.sweep.controls.fits import MOST_TOKENS, Shape, fitted, standard_error, together
from raysae.sweep.controls.making import with_share
from raysae.sweep.controls.verdict import Chosen, compared, verdict
from raysae.sweep.controls.worker import Makers
from raysae.training import NonFiniteLossError, TrainingConfig
from raysae.training.rows import Rows, Splits

QUICK = TrainingConfig(epochs=4, batch_size=128, lr=3e-3)
NAMES = ("frozen_decoder", "gaussian", "pca")


def judged(x, seeds=(0, 1)):
    shape = Shape(TopKConfig(d_sae=48, k=3), QUICK, seeds)
    makers = Makers(shape, Splits(Rows(x[:-1000]), Rows(x[-1000:])), "cpu", lambda: None)
    own = makers.as_it_is()
    reached = own["explained_variance"]
    controls = {name: with_share(makers.record(name), reached, 3) for name in NAMES}
    chosen = Chosen(reached, own["by_seed"], own.get("stability"))
    return controls, verdict(chosen, controls, 3), own


@pytest.fixture(scope="module")
def planted():
    return judged(SuperpositionWorld(d_in=24, atoms=48, p=0.06, seed=2).rows(7000))


def test_white_noise_is_no_better_than_the_controls():
    x = torch.randn(7000, 24, generator=torch.Generator().manual_seed(1))
    controls, told, own = judged(x)
    assert told["verdict"] == "no better"
    assert told["words"].startswith("no better than the controls") and "Gaussian" in told["words"]
    assert controls["gaussian"]["explained_variance"] == pytest.approx(
        own["explained_variance"], abs=0.01
    )


def test_planted_features_are_better_than_every_control(planted):
    controls, told, own = planted
    assert told["verdict"] == "better" and "times as much variance" in told["words"]
    assert "seeds agree more" in told["words"]
    assert all(0 < one["share"] < 0.9 for one in controls.values())
    assert controls["pca"]["components_to_reach"] > 3
    assert controls["frozen_decoder"]["seeds"] == 1 and own["seeds"] == 2


@pytest.mark.parametrize(
    ("chosen", "controls", "words"),
    [
        (Chosen(math.nan), {"pca": {"explained_variance": 0.5}}, "is undefined"),
        (Chosen(0.5), {}, "no control to compare with"),
        (Chosen(0.5), {"pca": {"reason": "it failed"}}, "no control to compare with"),
    ],
)
def test_without_figures_there_is_no_verdict(chosen, controls, words):
    told = verdict(chosen, controls, 4)
    assert told["verdict"] is None and words in told["words"]


def test_equal_variance_with_seeds_that_agree_more_is_unclear():
    gaussian = {"explained_variance": 0.8, "standard_error": 0.002, "stability": 0.4}
    told = verdict(Chosen(0.801, [0.8, 0.802], 0.9), {"gaussian": gaussian}, 4)
    assert told["verdict"] == "unclear" and "(0.900 and 0.400)" in told["words"]
    told = verdict(Chosen(0.801, [0.8, 0.802], 0.42), {"gaussian": gaussian}, 4)
    assert told["verdict"] == "no better" and "no more than the control's" in told["words"]


def test_noise_grows_with_the_errors_of_rows_and_seeds():
    def noise(chosen, error=0.001, name="pca"):
        figures = {"explained_variance": 0.9, "standard_error": error}
        return compared(chosen, {name: figures})[0].noise

    assert noise(Chosen(0.9)) == pytest.approx(2 * math.sqrt(2) * 0.001)
    assert noise(Chosen(0.9), error=0.0001) == pytest.approx(0.002)
    assert noise(Chosen(0.9), error=0.0001, name="shuffled_model") == pytest.approx(0.02)
    assert noise(Chosen(0.9, [0.88, 0.92])) == pytest.approx(
        2 * math.hypot(0.0282843, 0.001414), 1e-4
    )


def test_the_standard_error_is_about_that_of_other_rows():
    shape = Shape(TopKConfig(d_sae=48, k=3), QUICK, (0,))
    x = SuperpositionWorld(d_in=24, atoms=48, p=0.06, seed=2).rows(16_000)
    import raysae

    sae = raysae.fit(shape.sae, x[:4000], QUICK, validation=x[4000:5000], progress=False).sae
    parts = x[5000:15_000].split(500)
    errors = [standard_error(sae, Rows(part)) for part in parts]
    values = [sae(part).metrics["explained_variance"] for part in parts]
    spread = float(torch.tensor(values).std())
    assert 0.5 * spread < sum(errors) / len(errors) < 2 * spread
    assert math.isnan(standard_error(sae, Rows(x[:1])))


def test_a_long_training_is_shortened_and_several_sites_are_one_record():
    long = Shape(TopKConfig(d_sae=8, k=2), TrainingConfig(epochs=100), (0,))
    assert long.shortened(10**6).tokens == MOST_TOKENS
    assert long.shortened(1000).tokens is None and long.shortened(1000).evaluations == 1
    merged = together([
        {"explained_variance": 0.5, "by_components": [0.0, 0.4], "rows": 10},
        {"explained_variance": 0.7, "by_components": [0.0, 0.6], "rows": 10},
    ])  # fmt: skip
    assert merged == {"explained_variance": 0.6, "by_components": [0.0, 0.5], "rows": 10}


def test_a_control_that_fails_leaves_the_others():
    x = torch.randn(400, 8)
    shape = Shape(TopKConfig(d_sae=8, k=2), TrainingConfig(epochs=1, batch_size=64, lr=1e30), (0,))
    makers = Makers(shape, Splits(Rows(x[:300]), Rows(x[300:])), "cpu", lambda: None)
    assert "failed" in makers.record("gaussian")
    assert "explained_variance" not in makers.record("pca")
    assert len(makers.record("pca")["by_components"]) == 9


@pytest.mark.parametrize("frozen", [False, True])
def test_a_control_of_packs_is_that_of_saes_trained_one_by_one(frozen):
    """The first step of a GPU, here on the CPU; rounding apart, and nearly to the bit of a figure."""
    x = SuperpositionWorld(d_in=24, atoms=48, p=0.06, seed=2).rows(3000)
    shape, told = Shape(TopKConfig(d_sae=48, k=3), QUICK, (0, 1, 2)), []
    rows = Rows(x[:-1000]), Rows(x[-1000:])
    one_by_one, packed = (
        fitted(shape, *rows, "cpu", lambda: told.append(1), frozen=frozen, pack=pack)
        for pack in (False, True)
    )
    assert packed["seeds"] == one_by_one["seeds"] == (1 if frozen else 2)
    assert packed["tokens"] == one_by_one["tokens"] and len(told) > 100
    for name in ("explained_variance", "l0", "standard_error"):
        assert packed[name] == pytest.approx(one_by_one[name], rel=5e-3)
    assert ("stability" in packed) == (not frozen)


@pytest.mark.parametrize("pack", [False, True])
def test_a_control_that_cannot_train_says_why(pack):
    x = torch.randn(300, 8, generator=torch.Generator().manual_seed(0))
    shape = Shape(TopKConfig(d_sae=16, k=2), replace(QUICK, lr=1e30, warm_up=0.0), (0,))
    with pytest.raises(NonFiniteLossError, match="at step"):
        fitted(shape, Rows(x), Rows(x), "cpu", lambda: None, pack=pack)
    with pytest.raises(ValueError, match="d_in 8"):
        fitted(shape, Rows(x), Rows(x[:, :6]), "cpu", lambda: None, pack=pack)
