"""Rows drawn from several blocks are those of one block, in the same order, to the bit."""

from functools import cache

import pytest
import torch

from raysae.training import gathering
from raysae.training.kernels import build, kernels, kernels_if_built
from raysae.training.rows import Rows

NUMBERED = torch.arange(1000).float()[:, None] + torch.arange(4) / 8


@pytest.fixture(params=["compiled", "torch"])
def way(request, monkeypatch):
    """Gathering with the kernels, and without."""
    built = kernels() if request.param == "compiled" else None
    if request.param == "compiled" and built is None:
        pytest.skip("no kernels here")
    monkeypatch.setattr(gathering, "kernels_if_built", lambda: built)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("size", [1, 7, 400, 999, 1000])
def test_blocks_of_any_size_give_the_rows_of_one(way, dtype, size):
    one, many = Rows(NUMBERED.to(dtype)), Rows(NUMBERED.to(dtype).split(size))
    index = torch.randint(1000, (300,), generator=torch.Generator().manual_seed(size))
    for chosen in (index, index.sort(descending=True).values, index[:1], index[:0], index % 7):
        assert torch.equal(many.gather(chosen), one.gather(chosen))
    assert torch.equal(many.gather(index[::2]), one.gather(index[::2]))
    for start, stop in ((0, 1000), (399, 402), (5, 5), (998, 1000)):
        assert torch.equal(many.read(start, stop), one.read(start, stop))


def test_blocks_may_be_views_of_larger_rows(way):
    wide = torch.randn(1000, 9)
    index = torch.randperm(1000)
    assert torch.equal(Rows(wide[:, 2:6].split(300)).gather(index), wide[:, 2:6][index])


def test_what_is_read_is_a_copy(way):
    rows = Rows(NUMBERED.clone().split(300))
    rows.read(10, 20).zero_()
    rows.gather(torch.tensor([10, 11])).zero_()
    assert torch.equal(rows.read(0, 1000), NUMBERED)


@pytest.mark.parametrize("wrong", [-1, 1000])
def test_a_row_that_is_not_there_is_an_error(way, wrong):
    with pytest.raises(IndexError):
        Rows(NUMBERED.split(300)).gather(torch.tensor([3, wrong, 5]))


def test_gathering_compiles_nothing_by_itself(monkeypatch):
    monkeypatch.setattr(build, "_built", cache(build._built.__wrapped__))
    assert kernels_if_built() is None
    Rows(NUMBERED.split(300)).gather(torch.tensor([3, 500]))
    assert kernels_if_built() is None
    assert kernels() is kernels_if_built()
