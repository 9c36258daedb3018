"""What a scan reads, and in which order: every row once, in the order of the windows."""

import pytest

from raysae.cluster.scan.pieces import InOrder, InWindows, Survey
from raysae.training.rows import EVALUATION_BATCH
from raysae.training.windows import WindowOrder, windows

CASES = [(1000, 100, 33), (1000, 333, 1000), (1000, 4096, 7), (7, 3, 1), (1, 5, 5), (100, 100, 100)]


def rows_in(pieces):
    return [row for start, stop in pieces for row in range(start, stop)]


@pytest.mark.parametrize("sequential", [False, True])
@pytest.mark.parametrize(("rows", "window", "piece"), CASES)
def test_windows_in_pieces_hold_every_row_once_in_the_order_of_the_windows(
    rows, window, piece, sequential
):
    among = WindowOrder(rows, window, seed=3, epoch=1, sequential=sequential)
    order = InWindows(among, piece)
    pieces = list(order.pieces())
    assert all(0 < stop - start <= piece for start, stop in pieces)
    wanted = [one.start + row for one in windows(among) for row in range(one.rows)]
    assert rows_in(pieces) == wanted and sorted(wanted) == list(range(rows))
    first = order.first_pieces()
    assert {start: pieces[number][0] for start, number in first.items()} == {
        one.start: one.start for one in windows(among)
    }


@pytest.mark.parametrize("most", [0, 1, 3, 99])
def test_only_the_first_windows_are_read(most):
    among = WindowOrder(1000, 100, seed=3, epoch=-1)
    whole = rows_in(InWindows(among, 33).pieces())
    assert rows_in(InWindows(among, 33, most).pieces()) == whole[: most * 100]
    assert len(InWindows(among, 33, most).first_pieces()) == min(most, 10)


@pytest.mark.parametrize(("rows", "window", "piece"), CASES)
def test_all_rows_in_storage_order(rows, window, piece):
    assert rows_in(InOrder(rows, piece).pieces()) == list(range(rows))


def test_a_survey_is_spread_over_the_rows():
    rows = 20 * EVALUATION_BATCH
    pieces = list(Survey(rows, 3 * EVALUATION_BATCH).pieces())
    assert pieces[0][0] == 0 and pieces[-1][1] == rows and len(pieces) == 3
    assert len(set(rows_in(pieces))) >= 3 * EVALUATION_BATCH
    assert rows_in(Survey(50, 1000).pieces()) == list(range(50))


def test_equal_orders_are_one_scan():
    """A scan is found again by what it reads."""
    one, other = (InWindows(WindowOrder(9, 3, 0, epoch), 2) for epoch in (0, 0))
    assert one == other and hash(one) == hash(other)
    assert one != InWindows(WindowOrder(9, 3, 0, 1), 2)
    assert one != InWindows(WindowOrder(9, 3, 0, 0, sequential=True), 2)
