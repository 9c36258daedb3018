"""The contract that every variant keeps. A new variant joins by a line in ``CONFIGS``."""

import math
from dataclasses import replace

import pytest
import torch

import raysae
from raysae.errors import UserError
from raysae.sae import VARIANTS, build_sae, sae_config, save_sae
from raysae.sae.metrics import evaluate, mean_of_rows
from raysae.training import NonFiniteLossError, Trainer, TrainingConfig, save_training
from raysae.training.rows import Rows

D_IN, D_SAE = 16, 64
CONFIGS = {
    "topk": {"k": 5},
    "batch_topk": {"k": 5},
    "matryoshka": {"k": 5, "prefixes": [0.25, 0.5, 1.0]},
    "hierarchical_topk": {"k": 5},
    "jumprelu": {"l0_coefficient": 0.5, "initial_threshold": 0.3},
    "gated": {"l1_coefficient": 0.5},
    "relu_l1": {"l1_coefficient": 0.5, "decorrelation_coefficient": 0.5},
}
OF_THE_TOPK_KIND = ("topk", "batch_topk", "matryoshka", "hierarchical_topk")
NOBODY = torch.zeros(D_SAE, dtype=torch.bool)
TRAINING = {"epochs": 3, "batch_size": 64, "lr": 1e-3, "evaluations": 4}


def config_of(variant, **changes):
    return sae_config({"variant": variant, "d_sae": D_SAE, **CONFIGS[variant], **changes})


def filled(sae):
    """The same SAE with biases and thresholds that are not at their start."""
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for name, tensor in sae.state_dict().items():
            if name not in ("W_enc", "W_dec", "threshold"):
                tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.2)
            if name == "threshold":
                tensor.fill_(0.4)
    return sae


@pytest.fixture(params=CONFIGS)
def variant(request):
    return request.param


@pytest.fixture
def sae(variant):
    return filled(build_sae(config_of(variant), D_IN, seed=3))


@pytest.fixture
def x():
    return torch.randn(40, D_IN, generator=torch.Generator().manual_seed(9))


@pytest.fixture(scope="module")
def rows():
    return torch.randn(1000, D_IN, generator=torch.Generator().manual_seed(2))


def fitted(variant, rows, **training):
    settings = {**TRAINING, **training}
    return raysae.fit(
        config_of(variant), rows, settings, validation=rows[:300], seed=7, progress=False
    )


def test_every_variant_is_under_this_contract():
    assert CONFIGS.keys() == VARIANTS.keys()


def test_shapes(sae, x):
    reconstruction, features, metrics = sae(x.view(5, 8, D_IN))
    assert reconstruction.shape == (5, 8, D_IN) and features.shape == (5, 8, D_SAE)
    assert features.min() >= 0 and metrics["l0"] > 0
    with pytest.raises(ValueError, match="d_in 16"):
        sae(torch.zeros(3, D_IN + 1))


def test_the_start_is_tied_with_unit_rows(variant):
    sae = build_sae(config_of(variant), D_IN, seed=3)
    assert torch.equal(sae.W_enc, sae.W_dec.T)
    assert torch.allclose(sae.W_dec.norm(dim=1), torch.ones(D_SAE))
    assert torch.equal(sae.W_dec, build_sae(config_of(variant), D_IN, seed=3).W_dec)
    assert not torch.equal(sae.W_dec, build_sae(config_of(variant), D_IN, seed=4).W_dec)


def test_training_repeats_to_the_bit(variant, rows):
    first, again = fitted(variant, rows), fitted(variant, rows)
    assert first.history == again.history
    for name, tensor in first.sae.state_dict().items():
        assert torch.equal(tensor, again.sae.state_dict()[name])


def test_training_improves_on_the_start(variant, rows):
    fit = fitted(variant, rows, epochs=8, sparsity_warm_up=0.0)
    assert fit.metrics["explained_variance"] > fit.history[0]["explained_variance"]
    assert fit.history[-1]["loss"] < fit.history[0]["loss"]
    assert torch.allclose(fit.sae.W_dec.norm(dim=1), torch.ones(D_SAE), atol=1e-6)


@pytest.mark.parametrize("places", [12])
def test_gradients_match_finite_differences_where_smooth(variant, sae, x, places):
    sae, x = sae.double(), x.double()

    def loss():
        return smooth_loss(sae, x)

    loss().backward()
    gradients = {name: parameter.grad.clone() for name, parameter in sae.named_parameters()}
    for name, parameter in sae.named_parameters():
        if variant == "jumprelu" and name == "threshold":
            continue  # an estimate, tested below
        flat, gradient = parameter.data.view(-1), gradients[name].view(-1)
        for place in torch.linspace(0, len(flat) - 1, places).long().tolist():
            kept = float(flat[place])
            flat[place] = kept + 1e-6
            up = float(loss().detach())
            flat[place] = kept - 1e-6
            down = float(loss().detach())
            flat[place] = kept
            difference = (up - down) / 2e-6
            assert float(gradient[place]) == pytest.approx(difference, rel=1e-4, abs=1e-5), name


def smooth_loss(sae, x):
    """The loss; of gated without the gate's own reconstruction, whose decoder is frozen by design."""
    if sae.config.variant != "gated":
        return sae.loss(x, NOBODY)[0]
    features = sae.encode(x)
    through_gate = sae.preactivations(x).relu() @ sae.W_dec.detach() + sae.b_dec.detach()
    whole = sae.loss(x, NOBODY)[0]
    assert torch.allclose(
        whole,
        (x - sae.decode(features)).square().sum(1).mean()
        + (x - through_gate).square().sum(1).mean()
        + 0.5 * sae.preactivations(x).relu().sum(1).mean(),
    )
    return whole - (x - through_gate).square().sum(1).mean()


def test_float32_gradients_match_a_float64_reference(sae, x):
    sae.loss(x, NOBODY)[0].backward()
    single = {name: parameter.grad.clone() for name, parameter in sae.named_parameters()}
    double = sae.double()
    double.zero_grad()
    double.loss(x.double(), NOBODY)[0].backward()
    for name, parameter in double.named_parameters():
        assert torch.allclose(single[name].double(), parameter.grad, rtol=1e-4, atol=1e-4), name


def test_the_parallel_gradient_is_removed(sae, x):
    sae.loss(x, NOBODY)[0].backward()
    sae.remove_parallel_gradient()
    assert (sae.W_dec.grad * sae.W_dec).sum(dim=1).abs().max() < 1e-4


@pytest.mark.parametrize("k", [1, 5, D_SAE])
@pytest.mark.parametrize("variant", OF_THE_TOPK_KIND)
def test_l0_is_bounded_by_k(variant, k, x):
    sae = build_sae(config_of(variant, k=k), D_IN)
    features = sae.select(sae.preactivations(x))
    assert int((features > 0).sum()) <= k * len(x)
    if variant == "topk":
        assert int((features > 0).sum(dim=1).max()) <= k


@pytest.mark.parametrize("variant", ["jumprelu", "gated", "relu_l1"])
def test_l0_falls_with_the_sparsity_coefficient(variant, rows):
    key = config_of(variant).sparsity_key
    dense, sparse = (
        raysae.fit(
            config_of(variant, **{key: value}), rows, {**TRAINING, "epochs": 20, "lr": 3e-3},
            validation=rows[:300], progress=False,
        ).metrics["l0"]
        for value in (0.05, 3.0)
    )  # fmt: skip
    assert sparse < 0.7 * dense


def test_the_mean_predictor_scores_exactly_zero(sae, rows):
    mean = mean_of_rows([rows])
    silent = sae.double()
    with torch.no_grad():
        silent.b_dec.copy_(mean)
        silent.W_dec.zero_()
    sums = evaluate(lambda batch: silent(batch)[:2], rows.double().split(300), mean)
    assert sums.metrics()["explained_variance"] == 0.0


def test_saved_and_loaded_are_the_same(sae, x, tmp_path):
    save_sae(sae, tmp_path / "sae", {"layer": 3})
    loaded = raysae.load_sae(tmp_path / "sae")
    assert loaded.config == sae.config and loaded.metadata == {"layer": 3}
    assert torch.equal(sae(x).reconstruction, loaded(x).reconstruction)
    assert torch.equal(sae(x).features, loaded(x).features)


def test_folding_the_scale_changes_units_and_nothing_else(sae, x):
    scale = 3.7
    reconstruction, features, _ = sae(x * scale)
    folded = sae.fold_scale(scale)(x)
    assert torch.allclose(folded.reconstruction, reconstruction / scale, atol=1e-5)
    assert torch.allclose(folded.features, features / scale, atol=1e-5)
    assert torch.equal(folded.features > 0, features > 0)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_stopped_and_resumed_equals_uninterrupted(variant, precision, rows, tmp_path):
    whole = fitted(variant, rows, precision=precision)
    interrupted(variant, precision, rows, tmp_path / "checkpoint")
    resumed = kept_fit(variant, rows, tmp_path / "checkpoint", precision)
    assert resumed.history == whole.history and len(whole.history) == 4
    assert resumed.metrics == whole.metrics
    for name, tensor in whole.sae.state_dict().items():
        assert torch.equal(tensor, resumed.sae.state_dict()[name]), name


def interrupted(variant, precision, rows, folder):
    """A training that ends after its second of four rounds, and what it left on disk."""
    settings = TrainingConfig(**TRAINING, precision=precision)
    trainer = Trainer(config_of(variant), settings, Rows(rows), Rows(rows[:300]), seed=7)
    rounds = trainer.rounds()
    history = [next(rounds), next(rounds)]
    save_training(trainer, folder, history)


def kept_fit(variant, rows, folder, precision):
    return raysae.fit(
        config_of(variant), rows, {**TRAINING, "precision": precision}, validation=rows[:300],
        seed=7, checkpoint=folder, progress=False,
    )  # fmt: skip


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_rows_without_variance_train_without_nan(variant, value):
    same = torch.full((200, D_IN), value)
    fit = fitted(variant, same)
    assert all(tensor.isfinite().all() for tensor in fit.sae.state_dict().values())
    assert math.isnan(fit.metrics["explained_variance"])


def test_bfloat16_training_comes_near_float32(variant, rows):
    single, half = (fitted(variant, rows, epochs=8, precision=p) for p in ("float32", "bfloat16"))
    assert all(tensor.dtype == torch.float32 for tensor in half.sae.state_dict().values())
    assert not torch.equal(single.sae.W_enc, half.sae.W_enc)
    near = pytest.approx(single.metrics["explained_variance"], abs=0.02)
    assert half.metrics["explained_variance"] == near


def test_a_non_finite_loss_leaves_the_weights_alone(variant, rows):
    poisoned = rows.clone()
    settings = TrainingConfig(**TRAINING)
    trainer = Trainer(config_of(variant), settings, Rows(poisoned), Rows(rows[:100]))
    poisoned[500:] = float("nan")
    with pytest.raises(NonFiniteLossError, match="step"):
        list(trainer.rounds())
    assert all(tensor.isfinite().all() for tensor in trainer.sae().state_dict().values())


@pytest.mark.parametrize("variant", OF_THE_TOPK_KIND)
def test_aux_k_is_zero_when_nothing_is_dead_and_reaches_only_dead_latents(variant, x):
    sae = build_sae(config_of(variant), D_IN, seed=3)
    without = build_sae(config_of(variant, aux_coefficient=0.0), D_IN, seed=3)
    some = NOBODY.clone()
    some[:7] = True
    plain = sae.loss(x, NOBODY)[0]
    assert torch.equal(plain, without.loss(x, some)[0])
    with_aux = sae.loss(x, some)[0]
    assert with_aux > plain
    (with_aux - plain).backward()
    assert sae.W_enc.grad[:, :7].abs().sum() > 0
    assert sae.W_enc.grad[:, 7:].abs().max() < 1e-6


def test_the_jumprelu_threshold_has_the_papers_gradient():
    sae = filled(build_sae(config_of("jumprelu", bandwidth=0.5), D_IN, seed=3)).double()
    x = torch.randn(300, D_IN, generator=torch.Generator().manual_seed(1)).double()
    sae.loss(x, NOBODY)[0].backward()
    with torch.no_grad():
        z = sae.preactivations(x)
        kernel = ((z - sae.threshold).abs() < 0.25).double() / 0.5
        error_to_feature = 2 * (sae.decode(sae.activate(z)) - x) @ sae.W_dec.T / len(x)
        expected = -(sae.threshold * kernel * error_to_feature + 0.5 * kernel / len(x)).sum(dim=0)
    assert sae.threshold.grad.abs().min() > 0
    assert torch.allclose(sae.threshold.grad, expected)


def test_thresholds_move_and_stay_positive(rows):
    fit = fitted("jumprelu", rows)
    moved = fit.sae.threshold * fit.sae.metadata["training"]["input_scale"]
    assert moved.min() >= 0 and (moved - 0.3).abs().max() > 0.01


@pytest.mark.parametrize("variant", ["batch_topk", "matryoshka"])
def test_the_inference_threshold_keeps_k_on_average(variant, rows):
    fit = fitted(variant, rows, epochs=20)
    assert fit.sae.threshold > 0
    assert fit.metrics["l0"] == pytest.approx(5, rel=0.1)


def test_the_threshold_is_a_moving_average_of_the_smallest_active_value():
    sae = build_sae(config_of("batch_topk", threshold_rate=0.25), D_IN)
    for smallest, expected in ((2.0, 2.0), (4.0, 2.5), (0.5, 2.0)):
        sae.observe(torch.tensor([[0.0, smallest], [9.0, smallest + 1]]))
        assert float(sae.threshold) == pytest.approx(expected)
    sae.observe(torch.zeros(2, 2))
    assert float(sae.threshold) == pytest.approx(2.0)


def test_matryoshka_is_the_weighted_mean_of_its_prefixes(x):
    config = config_of("matryoshka", prefix_weights=[1, 2, 1], aux_coefficient=0.0)
    sae = filled(build_sae(config, D_IN, seed=3))
    loss, features = sae.loss(x, NOBODY)
    expected = 0.0
    for width, weight in ((16, 0.25), (32, 0.5), (64, 0.25)):
        reconstruction = features[:, :width] @ sae.W_dec[:width] + sae.b_dec
        expected += weight * float((x - reconstruction).detach().square().sum(dim=1).mean())
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-5)


def test_hierarchical_topk_is_the_mean_over_its_levels_and_a_topk_at_each(x):
    sae = filled(build_sae(config_of("hierarchical_topk", aux_coefficient=0.0), D_IN, seed=3))
    assert sae.config.ends == [1, 2, 4, 5]
    losses = [float(sae.at_k(k).loss(x, NOBODY)[0].detach()) for k in sae.config.ends]
    assert float(sae.loss(x, NOBODY)[0].detach()) == pytest.approx(sum(losses) / 4, rel=1e-5)
    assert int((sae.at_k(2).encode(x) > 0).sum(dim=1).max()) == 2
    for k in (0, 6):
        with pytest.raises(ValueError, match="1 to 5"):
            sae.at_k(k)


@pytest.mark.parametrize("to", ["saelens", "sparsify"])
def test_hierarchical_topk_is_exported_as_topk(to, x, tmp_path):
    sae = filled(build_sae(config_of("hierarchical_topk"), D_IN, seed=3))
    for k, one in ((5, sae), (3, sae.at_k(3))):
        raysae.export_sae(one, tmp_path / str(k), to)
        loaded = raysae.load_sae(tmp_path / str(k))
        assert (loaded.config.variant, loaded.config.k) == ("topk", k)
        assert torch.allclose(loaded.encode(x), sae.at_k(k).encode(x), atol=1e-5)


def test_prefixes_of_a_small_dictionary_that_round_to_the_same_are_one():
    config = sae_config({"variant": "matryoshka", "d_sae": 4, "k": 1})
    assert config.widths == [1, 2, 4] and sum(config.width_weights) == pytest.approx(1)
    assert config.width_weights[0] == pytest.approx(3 / 5)


def test_the_sparsity_coefficient_warms_up(x):
    sae = filled(build_sae(config_of("relu_l1"), D_IN))
    none, half, whole = (float(sae.loss(x, NOBODY, share)[0].detach()) for share in (0, 0.5, 1))
    assert half - none == pytest.approx(whole - half, rel=1e-4) and half > none
    shares = [
        TrainingConfig(sparsity_warm_up=0.1).sparsity_fraction(step, 100) for step in range(100)
    ]
    assert shares[0] == pytest.approx(0.1) and shares[9] == shares[99] == 1.0


def test_decorrelation_lowers_the_decoders_correlations(rows):
    plain, apart = (
        raysae.fit(
            config_of("relu_l1", decorrelation_coefficient=coefficient), rows,
            {**TRAINING, "epochs": 20, "lr": 3e-3}, validation=rows[:300], progress=False,
        ).metrics["decoder_cosine_mean_square_excess"]
        for coefficient in (0.0, 300.0)
    )  # fmt: skip
    assert 0 <= apart < 0.7 * plain


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"variant": "tpk"}, "variant is 'tpk'; known are topk"),
        ({"variant": "gated", "k": 3}, "gated has no setting 'k'"),
        ({"variant": "topk", "k": 600}, "above d_sae"),
        ({"variant": "topk", "k": 0}, "at least 1"),
        ({"variant": "topk", "d_sae": 0}, "at least 1 latent"),
        ({"variant": "topk", "aux_coefficient": -1.0}, "aux_coefficient"),
        ({"variant": "batch_topk", "threshold_rate": 0.0}, "threshold_rate"),
        ({"variant": "matryoshka", "prefixes": [0.5, 0.25, 1.0]}, "must rise"),
        ({"variant": "matryoshka", "prefixes": [0.5]}, "must rise"),
        ({"variant": "matryoshka", "prefixes": []}, "must rise"),
        ({"variant": "matryoshka", "prefix_weights": [1.0]}, "one for each"),
        ({"variant": "hierarchical_topk", "k": 8, "levels": [4, 2]}, "rising whole numbers"),
        ({"variant": "hierarchical_topk", "k": 8, "levels": [1.5]}, "rising whole numbers"),
        ({"variant": "hierarchical_topk", "k": 8, "levels": [16]}, "from 1 to k, which is 8"),
        ({"variant": "jumprelu", "bandwidth": 0.0}, "bandwidth"),
        ({"variant": "jumprelu", "l0_coefficient": float("nan")}, "l0_coefficient"),
        ({"variant": "gated", "l1_coefficient": -1.0}, "l1_coefficient"),
        ({"variant": "relu_l1", "decorrelation_coefficient": -1.0}, "decorrelation_coefficient"),
    ],
)
def test_impossible_configs_are_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        sae_config(settings)


def test_a_config_can_be_changed_and_stays_checked():
    with pytest.raises(ValueError, match="above d_sae"):
        replace(config_of("matryoshka"), k=D_SAE + 1)


def test_saving_over_something_else_is_refused(sae, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="holds no SAE"):
        sae.save(tmp_path)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"
