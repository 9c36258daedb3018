"""Time waited for data is measured, and rows that are copied to a device keep order and position."""

import time

import pytest
import torch

from raysae.training.feeding import Feed
from raysae.training.rows import Rows, Stream, StreamPosition


def test_the_time_waited_for_rows_is_measured_and_that_of_training_is_not():
    class SlowRows(Rows):
        def gather(self, index_B):
            time.sleep(0.01)
            return super().gather(index_B)

    feed = Feed(stream(SlowRows(torch.randn(200, 4))), "cpu")
    for _ in feed:
        time.sleep(0.1)
    assert 7 * 0.01 <= feed.waited < 7 * 0.1


def stream(source, position=None):
    return Stream(source, seed=0, epochs=1, batch_size=30, position=position)


def test_the_position_is_that_of_the_batches_handed_out():
    rows = Rows(torch.arange(400.0).reshape(100, 4))
    feed = Feed(stream(rows), "cpu")
    batches = iter(feed)
    first = [next(batches), next(batches)]
    assert feed.stream.position == StreamPosition(0, 60)
    rest = list(Feed(stream(rows, feed.stream.position), "cpu"))
    assert torch.equal(torch.cat(first + rest), torch.cat(list(stream(rows))))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_rows_copied_to_a_gpu_come_in_order_with_their_positions():
    source = Rows(torch.arange(400.0).reshape(100, 4))
    feed = Feed(stream(source), "cuda")
    for batch_BD, expected_BD in zip(feed, stream(source), strict=True):
        assert batch_BD.is_cuda and torch.equal(batch_BD.cpu(), expected_BD)
    assert feed.stream.position == StreamPosition(1)
