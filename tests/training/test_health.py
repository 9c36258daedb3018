"""What is unusual about rows: planted large norms, constant dimensions and repeats are counted."""

import dataclasses
import json

import pytest
import torch

import raysae
from raysae.training.finite import NonFiniteRowsError
from raysae.training.health import constant_dimensions, norms, repeats, too_large
from raysae.training.rows import Rows
from raysae.training.statistics import health_of

DTYPES = [torch.float16, torch.bfloat16, torch.float32]


def rows_of(count=1000, d_in=16, seed=0):
    """Rows of norm 1."""
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(count, d_in, generator=generator))


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_over_10_and_100_times_the_median_norm_are_counted(dtype):
    rows = rows_of()
    rows[10:15] *= 15
    rows[20:22] *= 150
    health = health_of(Rows(rows.to(dtype)))
    assert (health.over_10, health.over_100, health.rows) == (0.007, 0.002, 1000)
    (large,) = (finding for finding in health.findings if finding.kind == "large")
    assert (
        "0.70% of the rows have a norm over 10 times the median norm, 0.20% over 100" in large.fact
    )
    assert "source.max_norm_ratio=10" in large.advice and large.note in str(health)


def test_the_ratio_is_of_the_median_and_strict():
    norm = torch.tensor([1.0, 2.0, 2.0, 20.0, 20.001])
    assert too_large(norm, 10.0).tolist() == [False, False, False, False, True]
    even = torch.tensor([1.0, 2.0, 3.0, 11.0])
    assert too_large(even, 5.0).tolist() == [False, False, False, True], "the lower median is 2"
    assert not too_large(even, 6.0).any()
    zeros = torch.tensor([0.0, 0.0, 0.0, 1.0])
    assert not too_large(zeros, 10.0).any(), "nothing is large where the median row is zero"
    assert not len(too_large(torch.zeros(0), 10.0))


@pytest.mark.parametrize("ratio", [1.0, 1.5, 10.0])
def test_half_of_the_rows_always_remain(ratio):
    for seed in range(20):
        norm = torch.randn(1 + seed, generator=torch.Generator().manual_seed(seed)).exp() ** 4
        assert int((~too_large(norm, ratio)).sum()) >= len(norm) / 2


def test_norms_do_not_depend_on_how_many_rows_come_together():
    rows = rows_of(1500) * 3
    alone = torch.cat([norms(row[None]) for row in rows])
    assert torch.equal(norms(rows), alone) and alone.dtype == torch.float64
    assert float(norms(torch.full((1, 4), 3e38))[0]) == pytest.approx(6e38), "no overflow"


@pytest.mark.parametrize("dtype", DTYPES)
def test_constant_dimensions_are_named(dtype):
    rows = rows_of() + 1
    rows[:, 3], rows[:, 7], rows[:, 8] = 0.0, -2.5, 1e-4
    rows = rows.to(dtype)
    assert constant_dimensions(rows) == [3, 7, 8]
    health = health_of(Rows(rows))
    assert (health.constant, health.constant_at) == (3, (3, 7, 8))
    assert "3 dimensions (3, 7, 8) never vary (harmless" in str(health)


def test_what_varies_by_no_more_than_a_rounding_step_is_constant():
    rows = rows_of().half()
    step = torch.finfo(torch.float16).eps
    rows[:, 0], rows[::2, 0] = 1.0, 1.0 + step
    rows[:, 1], rows[::2, 1] = 1.0, 1.0 + 4 * step
    assert constant_dimensions(rows) == [0]
    far = rows_of().double().float() * 1e-3 + 100
    assert constant_dimensions(far) == [], "a small spread far from 0 is still a spread"
    assert constant_dimensions((rows_of() * 1e-7 + 100).half()) == list(range(16))


def test_many_constant_dimensions_are_counted_and_a_few_named():
    rows = rows_of(d_in=100)
    rows[:, 10:60] = 1.0
    health = health_of(Rows(rows))
    assert health.constant == 50 and health.constant_at == (10, 11, 12, 13, 14)
    assert "50 dimensions (10, 11, 12, 13, 14, ...) never vary" in str(health)
    rows = rows_of()
    rows[:, 5] = 0
    assert "1 dimension (5) never varies" in str(health_of(Rows(rows)))


@pytest.mark.parametrize("dtype", DTYPES)
def test_equal_rows_are_counted_to_the_bit(dtype):
    rows = rows_of(d_in=40).to(dtype)
    rows[100:200] = rows[0]
    rows[5] = rows[6]
    assert repeats(rows) == 101 + 2
    health = health_of(Rows(list(rows.split(70))))
    assert health.repeated == 0.103 and "source.repeats=drop" in str(health)
    zeros = torch.zeros(3, 4)
    zeros[1, 2] = -0.0
    assert repeats(zeros) == 2, "0 and -0 are different bits"


def test_few_repeats_are_a_figure_but_no_note():
    rows = rows_of()
    rows[1] = rows[0]
    health = health_of(Rows(rows))
    assert health.repeated == 0.002 and health.notes == []


def test_of_one_row_nothing_is_said():
    health = health_of(Rows(torch.randn(1, 4)))
    assert (health.rows, health.notes, health.constant, health.repeated) == (1, [], 0, 0.0)


@pytest.mark.parametrize("value", [0.0, 1.0, 1e4])
@pytest.mark.parametrize("dtype", DTYPES)
def test_equal_rows_are_told_once(value, dtype):
    health = health_of(Rows(torch.full((100, 4), value, dtype=dtype)))
    assert health.notes == ["all rows are equal (there is nothing to learn)"]
    assert (health.constant, health.repeated, health.over_10) == (4, 1.0, 0.0)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_rows_that_are_not_finite_are_refused(value):
    rows = rows_of()
    rows[77, 3] = value
    with pytest.raises(NonFiniteRowsError, match="row 77"):
        health_of(Rows(rows))


def test_a_large_mean_is_told_with_what_is_done_about_it():
    health = health_of(Rows(rows_of() + 5))
    assert health.mean_ratio > 10 and "inputs are centred" in str(health)


def test_a_large_set_is_sampled_at_both_ends():
    rows = rows_of(30_000, 4)
    rows[-1] *= 1000
    health = health_of(Rows(rows))
    assert health.rows == 8192 and health.over_100 == 1 / 8192
    assert health == health_of(Rows(list(rows.split(999)))), "whatever the blocks"


def test_a_training_records_it():
    rows = rows_of(600)
    rows[:3] *= 50
    rows[:, 2] = 1.0
    config = {"variant": "topk", "d_sae": 16, "k": 2}
    fit = raysae.fit(config, rows, {"epochs": 1}, validation=rows_of(seed=1), progress=False)
    health = fit.sae.metadata["training"]["input_health"]
    assert (health["over_10"], health["constant"], health["rows"]) == (3 / 600, 1, 600)
    assert {field.name for field in dataclasses.fields(health_of(Rows(rows)))} == set(health)
    assert json.dumps(health)
