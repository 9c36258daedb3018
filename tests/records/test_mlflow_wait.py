"""How long a run waits at its end for MLflow: not at all for one that was away before."""

import threading
import time
from types import SimpleNamespace

import pytest

from raysae.records import mlflow_wait
from raysae.records.mlflow_wait import Wait


@pytest.fixture
def clock(monkeypatch):
    """The time, which a test sets."""

    class Clock:
        now = 100.0

    stands = SimpleNamespace(monotonic=lambda: Clock.now)
    monkeypatch.setattr(mlflow_wait, "time", stands)
    return Clock


def test_what_was_away_before_the_end_is_tried_once_more(clock):
    wait = Wait(server=True)
    assert not wait.is_over(clock.now, 5)
    clock.now = 200.0
    assert not wait.is_over(clock.now, 5), "the run goes on"
    wait.end()
    assert not wait.is_over(199.0, 5), "this try began before the end"
    assert wait.is_over(200.0, 5)


def test_what_goes_away_at_the_end_is_tried_for_some_seconds(clock):
    wait = Wait(server=True)
    wait.is_over(clock.now, 5)
    clock.now = 150.0
    wait.moved()
    wait.end()
    assert not wait.is_over(clock.now, 5)
    clock.now = 154.0
    assert not wait.is_over(clock.now, 5)
    clock.now = 156.0
    assert wait.is_over(clock.now, 5)


def test_a_slow_server_is_waited_for_by_the_time_of_the_run(clock):
    short, long, file = Wait(server=True), Wait(server=True), Wait()
    clock.now = 130.0
    short.end()
    assert short._longest() == mlflow_wait.SHORTEST_WAIT_SECONDS
    clock.now = 1100.0
    long.end()
    file.end()
    assert long._longest() == 1000 * mlflow_wait.WAIT_SHARE
    assert file._longest() == mlflow_wait.LONGEST_WAIT_SECONDS


def test_a_server_that_answers_slowly_is_left_while_it_still_takes_records(monkeypatch):
    monkeypatch.setattr(mlflow_wait, "SHORTEST_WAIT_SECONDS", 0.5)
    over, wait = threading.Event(), Wait(server=True)

    def write():
        while not over.wait(0.05):
            wait.moved()

    thread = threading.Thread(target=write, daemon=True)
    thread.start()
    wait.end()
    began = time.monotonic()
    assert not wait.for_threads([thread], 0.1, 30) and wait.closed
    assert time.monotonic() - began < 20
    over.set()


def test_the_end_cuts_a_pause_short():
    wait = Wait()
    threading.Timer(0.1, wait.end).start()
    began = time.monotonic()
    wait.pause(60)
    assert time.monotonic() - began < 30
