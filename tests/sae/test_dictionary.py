"""Figures of the decoder's rows, against what they mean."""

import math

import pytest
import torch
from torch.nn.functional import normalize

import raysae
from raysae.sae import build_sae, dictionary, sae_config
from raysae.sae.dictionary import (
    agreement,
    best_match,
    decoder_statistics,
    least_mean_square_cosine,
    matches,
    mean_square_cosine,
    mmcs,
)


def unit_rows(count, width, seed=0):
    rows = torch.randn(count, width, generator=torch.Generator().manual_seed(seed))
    return normalize(rows.double(), dim=1)


def pairs(rows):
    cosine = rows @ rows.T
    return cosine[~torch.eye(len(rows), dtype=torch.bool)].view(len(rows), -1)


@pytest.mark.parametrize(("count", "width"), [(40, 8), (8, 40), (12, 12)])
def test_the_cheap_decorrelation_is_the_exact_one(count, width):
    rows = unit_rows(count, width).requires_grad_()
    cheap, plain = mean_square_cosine(rows), pairs(rows).square().mean()
    assert float(cheap.detach()) == pytest.approx(float(plain.detach()), rel=1e-12)
    (by_cheap,), (by_plain,) = (torch.autograd.grad(value, rows) for value in (cheap, plain))

    def across(gradient):  # what a unit-norm decoder keeps of it
        return gradient - (gradient * rows).sum(dim=1, keepdim=True) * rows

    assert torch.allclose(across(by_cheap), across(by_plain))


def test_the_welch_floor_is_reached_by_a_tight_frame_and_never_passed():
    angles = torch.arange(3) * 2 * math.pi / 3
    frame = torch.stack([angles.cos(), angles.sin()], dim=1)
    assert float(mean_square_cosine(frame)) == pytest.approx(least_mean_square_cosine(3, 2))
    assert decoder_statistics(frame)["decoder_cosine_mean_square_excess"] == pytest.approx(
        0, abs=1e-6
    )
    for seed in range(5):
        assert float(mean_square_cosine(unit_rows(50, 10, seed))) > least_mean_square_cosine(50, 10)
    assert least_mean_square_cosine(5, 10) == 0.0


def test_decoder_statistics_do_not_see_norms_and_look_at_other_rows_only():
    rows = unit_rows(3000, 6)  # more than are compared at once
    found = decoder_statistics(rows * torch.rand(3000, 1))
    assert found == pytest.approx(decoder_statistics(rows), abs=1e-6)
    nearest = pairs(rows).amax(dim=1)
    assert found["decoder_cosine_nearest_mean"] == pytest.approx(float(nearest.mean()), abs=1e-6)
    assert found["decoder_cosine_nearest_max"] == pytest.approx(float(nearest.max()), abs=1e-6)
    assert set(decoder_statistics(rows[:1]).values()) == {0.0}


def test_of_wide_dictionaries_the_mean_square_is_exact_and_the_nearest_of_a_sample(monkeypatch):
    rows = unit_rows(700, 24).float()
    exact = decoder_statistics(rows)
    monkeypatch.setattr(dictionary, "ALL_PAIRS", 600)
    monkeypatch.setattr(dictionary, "ROWS_AT_ONCE", 128)
    monkeypatch.setattr(dictionary, "NEAREST_SAMPLE", 700)
    whole = decoder_statistics(rows)
    assert whole.pop("decoder_cosine_nearest_latents") == 700
    assert whole == pytest.approx(exact, rel=1e-5, abs=1e-9)
    monkeypatch.setattr(dictionary, "NEAREST_SAMPLE", 300)
    sampled = decoder_statistics(rows)
    assert sampled == decoder_statistics(rows)  # always the same sample
    assert sampled["decoder_cosine_nearest_latents"] == 300
    assert sampled["decoder_cosine_mean_square"] == whole["decoder_cosine_mean_square"]
    close = {name: whole[name] for name in exact}
    assert {name: sampled[name] for name in exact} == pytest.approx(close, abs=0.03)
    assert sampled["decoder_cosine_nearest_max"] <= whole["decoder_cosine_nearest_max"]


def test_of_more_dimensions_than_rows_all_pairs_are_compared(monkeypatch):
    monkeypatch.setattr(dictionary, "ALL_PAIRS", 10)
    assert "decoder_cosine_nearest_latents" not in decoder_statistics(unit_rows(30, 40))
    assert "decoder_cosine_nearest_latents" in decoder_statistics(unit_rows(41, 40))


def test_of_many_latents_a_sample_is_matched_and_the_figure_says_so(monkeypatch):
    rows, others = unit_rows(400, 32), unit_rows(400, 32, seed=1)
    half = torch.cat([rows[:200], others[:200]])
    exact = agreement([[rows, half]])
    assert set(exact) == {"stability", "stability_halves"} and agreement([[rows], [half]]) == {}
    monkeypatch.setattr(dictionary, "ALL_MATCHED", 300)
    assert agreement([[rows, half]]) == exact  # the sample would hold all rows
    monkeypatch.setattr(dictionary, "MATCH_SAMPLE", 100)
    found = agreement([[rows, half, half.flip(0)]])
    assert found["stability_latents"] == 100
    assert best_match(rows, half) == best_match(rows, half)
    assert best_match(rows, half) == pytest.approx(exact["stability"], abs=0.1)
    assert best_match(rows, rows.flip(0)) == pytest.approx(1)
    assert best_match(rows, half[:80]) > 0.8 and matches(400, 80) == 80


def test_mmcs_of_the_truth_itself_is_one_and_of_noise_is_not():
    truth, noise = unit_rows(50, 32), unit_rows(50, 32, seed=1)
    assert mmcs(truth, truth.flip(0) * -2) == (pytest.approx(1), 1.0)
    assert mmcs(truth, noise)[0] < 0.7 and mmcs(truth, noise)[1] == 0


def test_the_best_match_is_one_to_one():
    rows = unit_rows(20, 8)
    assert best_match(rows, rows.flip(0) * 3) == pytest.approx(1)
    assert best_match(rows, -rows) < 0.9  # a latent of the opposite direction is another latent
    doubled = torch.cat([rows[:10], rows[:10]])
    one_to_one, greedy = best_match(rows, doubled), float((rows @ doubled.T).amax(1).mean())
    assert one_to_one < greedy
    assert best_match(rows, rows[:5]) == pytest.approx(1)
    assert math.isnan(best_match(rows, rows[:0]))


def test_stability_looks_at_live_latents_alone():
    first, second = (build_sae(sae_config({"variant": "relu_l1", "d_sae": 12}), 8) for _ in "ab")
    rows = torch.randn(100, 8, generator=torch.Generator().manual_seed(2))
    assert raysae.stability(first, second, rows) == pytest.approx(1)
    with torch.no_grad():
        second.W_dec[:4] = -second.W_dec[:4]
        dead = first.b_enc.clone()
        dead[:4] = -100
    assert raysae.stability(first, second, rows) < 0.95
    with torch.no_grad():
        first.b_enc.copy_(dead)
        second.b_enc.copy_(dead)
    assert raysae.stability(first, second, [rows[:50], rows[50:]]) == pytest.approx(1)
    with torch.no_grad():
        second.b_enc.fill_(-100)
    assert math.isnan(raysae.stability(first, second, rows))
