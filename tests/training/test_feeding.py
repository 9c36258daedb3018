"""Time waited for data is measured, and rows that are copied to a device keep order and position."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from raysae.training.feeding import Feed, ReadAhead, wait_for_one
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


def test_what_is_read_ahead_does_not_move_the_position():
    rows = Rows(torch.arange(400.0).reshape(100, 4))
    feed = Feed(stream(rows), "cpu")
    with ThreadPoolExecutor(1) as pool:
        ahead = ReadAhead(feed, pool)
        first = [next(ahead), next(ahead)]
        wait_for_one([ahead])
        assert ahead.is_ready and feed.stream.position == StreamPosition(0, 60)
        ahead.close()
    rest = list(Feed(stream(rows, feed.stream.position), "cpu"))
    assert torch.equal(torch.cat(first + rest), torch.cat(list(stream(rows))))


class Held(Rows):
    """Rows that come past, and are given when ``given`` is set."""

    passing = True

    def __init__(self, blocks):
        super().__init__(blocks)
        self.given, self.said = threading.Event(), []

    def taken(self, order, batch_size):
        assert self.given.wait(60)
        yield from super().taken(order, batch_size)

    def hurry(self, waits):
        self.said.append(waits)
        self.given.set()


def test_a_wait_that_takes_long_is_told_and_taken_back():
    one, other = Held(torch.randn(40, 4)), Held(torch.randn(40, 4))
    with ThreadPoolExecutor(2) as pool:
        feeds = [ReadAhead(Feed(stream(rows), "cpu"), pool) for rows in (one, other)]
        wait_for_one(feeds)
        assert one.said == other.said == [True, False]
        assert sum(len(batch_BD) for feed in feeds for batch_BD in feed) == 80
    assert one.said == [True, False], "nothing was waited for after that"


class ByWindow(Rows):
    """Rows whose second window is given when ``given`` is set; ``fails``: it cannot be read."""

    def __init__(self, blocks, fails=False):
        super().__init__(blocks, sequential=True)
        self.given, self.fails = threading.Event(), fails

    def taken(self, order, batch_size):
        first, *others = order
        yield from super().taken(iter([first]), batch_size)
        assert self.given.wait(60)
        if self.fails:
            raise OSError("the model is gone")
        yield from super().taken(iter(others), batch_size)


def test_nobody_waits_for_the_next_window_with_batches_at_hand():
    rows = ByWindow(torch.arange(400.0).reshape(100, 4))
    whole = Stream(rows, seed=0, epochs=1, batch_size=20, shuffle_rows=50)
    with ThreadPoolExecutor(1) as pool:
        ahead = ReadAhead(Feed(whole, "cpu"), pool)
        first = [next(ahead), next(ahead)]
        assert whole.position == StreamPosition(0, 40) and not ahead.is_at_hand
        assert not ahead.is_ready, "the third is of both windows"
        rows.given.set()
        rest = list(ahead)
    assert torch.equal(
        torch.cat([*first, *rest]), torch.cat(list(whole.source.epoch(0, 0, 20, 50)))
    )


def test_what_was_read_before_an_error_is_handed_out_first():
    rows = ByWindow(torch.arange(400.0).reshape(100, 4), fails=True)
    rows.given.set()
    whole = Stream(rows, seed=0, epochs=1, batch_size=20, shuffle_rows=50)
    with ThreadPoolExecutor(1) as pool:
        ahead = ReadAhead(Feed(whole, "cpu"), pool)
        assert [len(next(ahead)), len(next(ahead))] == [20, 20]
        for _ in range(2):
            with pytest.raises(OSError, match="the model is gone"):
                next(ahead)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_rows_copied_to_a_gpu_come_in_order_with_their_positions():
    source = Rows(torch.arange(400.0).reshape(100, 4))
    feed = Feed(stream(source), "cuda")
    for batch_BD, expected_BD in zip(feed, stream(source), strict=True):
        assert batch_BD.is_cuda and torch.equal(batch_BD.cpu(), expected_BD)
    assert feed.stream.position == StreamPosition(1)
