"""TopK: sparsity, gradients, norms, scale folding."""

import pytest
import torch

from raysae.sae import build_sae
from raysae.sae.topk import TopKConfig, top_k


@pytest.fixture
def sae():
    return build_sae(TopKConfig(d_sae=64, k=5), d_in=16, seed=3)


@pytest.fixture
def x():
    return torch.randn(40, 16, generator=torch.Generator().manual_seed(9))


def test_top_k_keeps_the_largest_and_drops_negatives():
    row = torch.tensor([[3.0, -1.0, 2.0, -5.0]])
    assert top_k(row, 1).tolist() == [[3.0, 0, 0, 0]]
    assert top_k(row, 3).tolist() == [[3.0, 0, 2.0, 0]]
    assert top_k(row, 4).tolist() == [[3.0, 0, 2.0, 0]]


@pytest.mark.parametrize("k", [1, 5, 64])
def test_l0_never_exceeds_k(k, x):
    sae = build_sae(TopKConfig(d_sae=64, k=k), d_in=16)
    _, features, metrics = sae(x)
    assert int((features > 0).sum(dim=1).max()) <= k
    assert metrics["l0"] <= k


def test_encoder_starts_as_the_decoder_transposed_with_unit_rows(sae):
    assert torch.equal(sae.W_enc, sae.W_dec.T)
    assert torch.allclose(sae.W_dec.norm(dim=1), torch.ones(64))


def test_same_seed_same_weights_other_seed_others():
    config = TopKConfig(d_sae=64, k=5)
    assert torch.equal(build_sae(config, 16, 1).W_dec, build_sae(config, 16, 1).W_dec)
    assert not torch.equal(build_sae(config, 16, 1).W_dec, build_sae(config, 16, 2).W_dec)


def test_gradients_match_finite_differences(sae, x):
    sae = sae.double()
    x = x.double()
    nothing_dead = torch.zeros(64, dtype=torch.bool)

    def loss():
        return sae.loss(x, nothing_dead)[0]

    loss().backward()
    for parameter in sae.parameters():
        flat, gradient = parameter.data.view(-1), parameter.grad.view(-1)
        for place in (0, len(flat) // 2, len(flat) - 1):
            kept = float(flat[place])
            flat[place] = kept + 1e-6
            up = float(loss().detach())
            flat[place] = kept - 1e-6
            down = float(loss().detach())
            flat[place] = kept
            assert float(gradient[place]) == pytest.approx((up - down) / 2e-6, rel=1e-4, abs=1e-5)


def test_aux_k_is_zero_when_nothing_is_dead_and_reaches_only_dead_latents(sae, x):
    nobody = torch.zeros(64, dtype=torch.bool)
    some = nobody.clone()
    some[:7] = True
    plain, _ = sae.loss(x, nobody)
    with_aux, _ = sae.loss(x, some)
    assert with_aux > plain
    (with_aux - plain).backward()
    assert sae.W_enc.grad[:, :7].abs().sum() > 0
    assert sae.W_enc.grad[:, 7:].abs().max() < 1e-6


def test_the_parallel_gradient_is_removed(sae, x):
    sae.loss(x, torch.zeros(64, dtype=torch.bool))[0].backward()
    sae.remove_parallel_gradient()
    assert (sae.W_dec.grad * sae.W_dec).sum(dim=1).abs().max() < 1e-4


def test_folding_the_scale_changes_units_and_nothing_else(sae, x):
    sae.b_enc.data.normal_()
    sae.b_dec.data.normal_()
    scale = 3.7
    reconstruction, features, _ = sae(x * scale)
    folded_reconstruction, folded_features, _ = sae.fold_scale(scale)(x)
    assert torch.allclose(folded_reconstruction, reconstruction / scale, atol=1e-5)
    assert torch.equal(folded_features > 0, features > 0)
    assert torch.allclose(sae.W_dec.norm(dim=1), torch.ones(64))


def test_leading_dimensions_are_kept(sae, x):
    reconstruction, features, _ = sae(x.view(5, 8, 16))
    assert reconstruction.shape == (5, 8, 16) and features.shape == (5, 8, 64)


def test_rows_of_another_width_are_refused(sae):
    with pytest.raises(ValueError, match="d_in 16"):
        sae(torch.zeros(3, 17))


@pytest.mark.parametrize(
    "bad", [{"k": 65}, {"k": 0}, {"d_sae": 0, "k": 1}, {"aux_coefficient": -1}]
)
def test_impossible_configs_are_refused(bad):
    with pytest.raises(ValueError):
        TopKConfig(**{"d_sae": 64, "k": 5, **bad})
