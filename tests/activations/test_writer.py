"""The rows that a dtype can hold: too large and too small values are refused, with a dtype that fits."""

import math

import pytest
import torch

from raysae.activations.casting import LOSS, lossy_rows, must_look, to_storage
from raysae.errors import UserError
from raysae.sites import Site

SITE = Site(3, "all")


def rows(scale=1.0, count=200, d_in=24, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(count, d_in, generator=generator, dtype=torch.float64) * scale).to(dtype)


@pytest.mark.parametrize(
    ("scale", "source", "dtype", "way"),
    [
        (1e-9, torch.float32, "float16", "set dtype to bfloat16"),
        (5e-7, torch.float32, "float16", "set dtype to bfloat16"),
        (1e-9, torch.bfloat16, "float16", "set dtype to bfloat16"),
        (1e-9, torch.float64, "float16", "set dtype to bfloat16"),
        (1e-40, torch.float64, "float16", "set dtype to float32"),
        (1e-39, torch.float32, "bfloat16", "set dtype to float32"),
        (1e-48, torch.float64, "float32", "multiply the activations by a constant"),
        (1e-300, torch.float64, "float32", "multiply the activations by a constant"),
    ],
)
def test_values_that_are_too_small_are_refused_with_the_way(scale, source, dtype, way):
    with pytest.raises(UserError, match=f"200 of 200 rows lose more than 1%.*too small.*{way}"):
        to_storage(rows(scale, dtype=source), dtype, SITE)


@pytest.mark.parametrize(
    ("scale", "source", "dtype"),
    [
        (1e-5, torch.float32, "float16"),
        (1e-9, torch.float32, "bfloat16"),
        (1e-36, torch.float32, "bfloat16"),
        (1e-40, torch.float32, "float32"),
        (1e-7, torch.float16, "bfloat16"),
        (1e-7, torch.float16, "float16"),
        (1e-36, torch.float64, "float32"),
    ],
)
def test_values_that_the_dtype_holds_are_taken(scale, source, dtype):
    x = rows(scale, dtype=source)
    stored = to_storage(x, dtype, SITE).double()
    error = (x.double() - stored).norm(dim=1) / x.double().norm(dim=1)
    assert error.max() < LOSS


def test_exactly_the_rows_that_lose_are_found():
    scale = torch.logspace(-9, 0, 400).view(-1, 1)
    x = rows(count=400) * scale
    stored = x.half().double()
    loses = (x.double() - stored).norm(dim=1) > LOSS * x.double().norm(dim=1)
    assert 0 < loses.sum() < 400
    assert lossy_rows(x, "float16").tolist() == loses.nonzero()[:, 0].tolist()


def test_zeros_and_small_values_beside_large_ones_are_no_loss():
    x = rows()
    x[:120] = 0  # rows of zeros
    x[:, 2:] *= 1e-9  # dimensions that become 0, which the rows' error does not show
    assert (to_storage(x, "float16", SITE)[:, 2:] == 0).all()


def test_a_row_is_found_whatever_its_one_large_value():
    x = torch.zeros(60, 48)
    x[torch.arange(60), torch.arange(60) % 48] = 1.0
    to_storage(x, "float16", SITE)
    with pytest.raises(UserError, match="60 of 60 rows"):
        to_storage(x * 1e-8, "float16", SITE)


@pytest.mark.parametrize(("small", "refused"), [(1, False), (9, False), (11, True), (100, True)])
def test_few_small_rows_are_no_reason_to_refuse(small, refused):
    x = rows(count=1000)
    x[:small] *= 1e-9
    if not refused:
        assert to_storage(x, "float16", SITE).dtype == torch.float16
        return
    with pytest.raises(UserError, match=f"{small} of 1,000 rows.*row 0"):
        to_storage(x, "float16", SITE)


@pytest.mark.parametrize("count", [1, 3])
def test_a_batch_of_few_rows_is_judged_too(count):
    with pytest.raises(UserError, match=f"{count} of {count} rows"):
        to_storage(rows(1e-9, count=count), "float16", SITE)


def test_too_large_values_are_refused_and_none_at_all_are_fine():
    with pytest.raises(UserError, match="above float16's largest"):
        to_storage(rows(1e6), "float16", SITE)
    assert len(to_storage(torch.zeros(0, 8), "float16", SITE)) == 0
    x = rows()
    x[3, 3] = math.nan  # the writer decides on these, not this check
    assert to_storage(x, "float16", SITE).isnan().sum() == 1


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("source", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [1e-48, 1e-9, 1e-4, 1.0, 64_000.0, 66_000.0, 1e6, 1e39, 1e300])
def test_what_is_refused_was_looked_at(scale, source, dtype):
    x = rows(dtype=torch.float64).clamp(-1, 1).mul(scale).to(source)
    refused = False
    try:
        to_storage(x, dtype, SITE)
    except UserError:
        refused = True
    assert bool(must_look(x, dtype)) >= refused


def test_ordinary_rows_are_not_looked_at():
    assert not must_look(rows(), "float16") and not must_look(rows()[:0], "float16")
    x = rows()
    x[3, 3], x[4, 4] = math.nan, math.inf  # the writer decides on these
    assert not must_look(x, "float16")
