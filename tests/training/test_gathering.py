"""Rows drawn from several blocks are those of one block, in the same order, to the bit."""

import pytest
import torch

from raysae.training.gathering import gathered
from raysae.training.rows import Rows

NUMBERED = torch.arange(1000).float()[:, None] + torch.arange(4) / 8


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("size", [1, 7, 400, 999, 1000])
def test_blocks_of_any_size_give_the_rows_of_one(dtype, size):
    one, many = Rows(NUMBERED.to(dtype)), Rows(NUMBERED.to(dtype).split(size))
    index = torch.randint(1000, (300,), generator=torch.Generator().manual_seed(size))
    for chosen in (index, index.sort(descending=True).values, index[:1], index[:0], index % 7):
        assert torch.equal(many.gather(chosen), one.gather(chosen))
    for start, stop in ((0, 1000), (399, 402), (5, 5), (998, 1000)):
        assert torch.equal(many.read(start, stop), one.read(start, stop))


def test_what_is_read_is_a_copy():
    rows = Rows(NUMBERED.split(300))
    rows.read(10, 20).zero_()
    rows.gather(torch.tensor([10, 11])).zero_()
    assert torch.equal(rows.read(0, 1000), NUMBERED)


@pytest.mark.parametrize("wrong", [-1, 1000])
def test_a_row_that_is_not_there_is_an_error(wrong):
    blocks = NUMBERED.split(300)
    with pytest.raises(IndexError):
        gathered(blocks, torch.tensor([0, 300, 600, 900, 1000]), torch.tensor([3, wrong, 5]))
