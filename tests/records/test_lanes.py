"""Threads of jobs: order within a key, a last job after all others, errors that are told."""

import threading
import time

import pytest

from raysae.records.lanes import Lanes, side_by_side


def test_jobs_of_a_key_are_done_in_order_and_the_last_after_all():
    done, lock = [], threading.Lock()

    def do(job):
        time.sleep(0.001 * (job[0] == "a"))
        with lock:
            done.append(job)

    lanes = Lanes("test", 4, do)
    for number in range(20):
        for key in "abcdefgh":
            lanes.put(key, (key, number))
    lanes.put_last(("last", 0))
    lanes.put("a", ("a", 20))
    lanes.close()
    for thread in lanes.threads:
        thread.join(60)
    assert lanes.left == 0 and len(done) == 162
    for key in "abcdefgh":
        numbers = [number for of, number in done if of == key]
        assert numbers == sorted(numbers)
    assert set(done[: done.index(("last", 0))]) == {
        (key, n) for key in "abcdefgh" for n in range(20)
    }


def test_a_lane_that_hangs_holds_up_no_other():
    over, done = threading.Event(), []
    lanes = Lanes("test", 2, lambda job: job())
    lanes.put("a", over.wait)
    for key in "bcdef":  # not all of them share a thread with "a"
        lanes.put(key, lambda: done.append("b"))
    deadline = time.monotonic() + 60
    while not done and time.monotonic() < deadline:
        time.sleep(0.01)
    assert done and lanes.left >= 1
    over.set()


def test_jobs_at_once_all_end_and_the_first_error_is_raised():
    meet, done = threading.Barrier(3), []

    def fail():
        meet.wait(60)
        raise OSError("first")

    with pytest.raises(OSError, match="first"):
        side_by_side(
            [fail, lambda: meet.wait(60), lambda: meet.wait(60), lambda: done.append(1)], 3
        )
    assert done == [1]
    side_by_side([], 3)
