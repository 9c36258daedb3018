"""The indicators tell apart dictionaries of single atoms and of mixtures."""

import math

import pytest
import torch
from torch.nn.functional import normalize

from raysae.sae import indicators
from raysae.sae.dictionary import best_match
from raysae.sae.indicators import (
    chance_agreement,
    mean_abs_cosine,
    nth_projection,
    projection_rank,
    projection_rows,
)
from tests.sae.test_dictionary import unit_rows


def test_the_mean_cosine_is_over_all_pairs():
    rows = unit_rows(30, 8)
    cosine = (rows @ rows.T).abs()
    expected = float((cosine.sum() - cosine.diagonal().sum()) / (30 * 29))
    assert mean_abs_cosine(rows * 5) == pytest.approx(expected, abs=1e-6)
    assert mean_abs_cosine(torch.eye(8)) == pytest.approx(0, abs=1e-7)
    assert math.isnan(mean_abs_cosine(rows[:1]))


def test_of_many_rows_a_sample_is_compared(monkeypatch):
    rows = unit_rows(400, 16)
    exact = mean_abs_cosine(rows)
    monkeypatch.setattr(indicators, "PAIRS_SAMPLE", 200)
    assert mean_abs_cosine(rows) == pytest.approx(exact, abs=5e-3)


def test_the_nth_projection_is_what_sorting_gives():
    decoder, rows = unit_rows(12, 6).float(), torch.randn(50, 6)
    n = projection_rank(12)
    expected = (rows @ decoder.T).sort(dim=1, descending=True).values[:, n - 1] / 6**0.5
    found = nth_projection(decoder, rows.split(8))
    assert n == 3 and found.mean == pytest.approx(float(expected.mean()), abs=1e-6)
    halves = expected[::2].mean() - expected[1::2].mean()
    assert found.difference == pytest.approx(abs(float(halves)), abs=1e-6)
    assert math.isnan(nth_projection(decoder[:0], [rows]).mean)


def test_large_dictionaries_are_projected_on_fewer_rows():
    assert projection_rows(1000) == 4096 and projection_rows(2**14) == 1024
    assert projection_rows(2**20) == 256
    assert [projection_rank(count) for count in (1, 4, 9)] == [1, 1, 2]


def test_mixed_latents_have_larger_indicators():
    draw = torch.Generator().manual_seed(0)
    atoms = torch.eye(16)
    rows = (torch.rand(500, 16, generator=draw) < 0.15).float() @ atoms
    rows -= rows.mean(dim=0)
    mixed = normalize(atoms + 0.5 * atoms.roll(1, 0), dim=1)
    assert mean_abs_cosine(mixed) > mean_abs_cosine(atoms)
    assert nth_projection(mixed, [rows]).mean > nth_projection(atoms, [rows]).mean


def test_chance_is_what_random_dictionaries_reach(monkeypatch):
    exact = best_match(unit_rows(60, 24), unit_rows(90, 24, seed=1))
    assert chance_agreement(60, 90, 24) == pytest.approx(exact, abs=0.04)
    assert chance_agreement(90, 60, 24) == chance_agreement(60, 90, 24)
    monkeypatch.setattr(indicators, "CHANCE_ROWS", 30)
    assert chance_agreement(60, 90, 24) >= exact - 0.04
    assert math.isnan(chance_agreement(0, 5, 24))
