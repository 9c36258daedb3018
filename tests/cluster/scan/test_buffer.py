"""The buffer of a scan: order, bounded memory, back-pressure, and readers that come late, stay or go."""

import threading
import time

import pytest

from raysae.cluster.scan import buffer as module
from raysae.cluster.scan.buffer import Memory, PieceBuffer

ENOUGH = 5.0
"""Seconds that nothing here takes."""


class Now:
    """A clock that the test moves."""

    def __init__(self):
        self.seconds = 0.0

    def __call__(self):
        return self.seconds


@pytest.fixture(autouse=True)
def quick_looks(monkeypatch):
    monkeypatch.setattr(module, "LOOK_SECONDS", 0.005)


def filled(buffer, count, size=1):
    """Put ``count`` pieces in a thread, then end."""

    def fill():
        for number in range(buffer.first, buffer.first + count):
            if not buffer.put(f"piece {number}", size):
                return
        buffer.end()

    thread = threading.Thread(target=fill, daemon=True)
    thread.start()
    return thread


def read(buffer, name, numbers, held=0):
    """Take pieces; the reader still holds the last ``held`` before each."""
    return [buffer.take(name, n, max(n - held, 0), ENOUGH).piece for n in numbers]


def settled(buffer):
    """The number of pieces once the producer waits."""
    last = -1
    while last != len(buffer._pieces):
        last = len(buffer._pieces)
        time.sleep(0.05)
    return last


def test_every_reader_gets_every_piece_once_in_order():
    buffer = PieceBuffer(Memory(4), 0, expected=3)
    for name in "abc":
        assert buffer.join(name, 0)
    filled(buffer, 50)
    found = {}
    threads = [
        threading.Thread(
            target=lambda name=name: found.update({name: read(buffer, name, range(50))})
        )
        for name in "abc"
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(ENOUGH)
    wanted = [f"piece {n}" for n in range(50)]
    assert found == {"a": wanted, "b": wanted, "c": wanted}
    assert buffer.take("a", 50, 50, ENOUGH).state == "end"
    assert buffer.memory.most <= 4


def test_the_slowest_reader_holds_the_scan_back():
    memory = Memory(10)
    buffer = PieceBuffer(memory, 0, expected=2)
    buffer.join("fast", 0), buffer.join("slow", 0)
    filled(buffer, 100)
    read(buffer, "slow", [0])
    assert read(buffer, "fast", range(10)) == [f"piece {n}" for n in range(10)]
    assert buffer.take("fast", 10, 10, 0.1).state == "wait"
    assert memory.used == 10
    read(buffer, "slow", range(1, 4))
    assert read(buffer, "fast", range(10, 13)) == ["piece 10", "piece 11", "piece 12"]
    assert memory.most == 10


def test_what_the_slowest_waits_for_always_comes():
    """A window larger than the memory must not stop a scan for ever."""
    buffer = PieceBuffer(Memory(3), 0, expected=1)
    buffer.join("a", 0)
    filled(buffer, 20)
    assert read(buffer, "a", range(20), held=100) == [f"piece {n}" for n in range(20)]


def test_a_piece_larger_than_the_memory_comes_alone():
    buffer = PieceBuffer(Memory(3), 0)
    buffer.join("a", 0)
    filled(buffer, 3, size=10)
    assert read(buffer, "a", range(3)) == ["piece 0", "piece 1", "piece 2"]


def test_the_first_pieces_wait_for_readers_that_are_expected():
    now = Now()
    buffer = PieceBuffer(Memory(5), 0, expected=2, clock=now)
    buffer.join("first", 0)
    filled(buffer, 50)
    read(buffer, "first", range(5))
    assert settled(buffer) == 5
    assert buffer.join("second", 0)
    assert read(buffer, "second", range(3)) == ["piece 0", "piece 1", "piece 2"]
    assert read(buffer, "first", [5, 6]) == ["piece 5", "piece 6"]


def test_nobody_is_waited_for_for_ever():
    now = Now()
    buffer = PieceBuffer(Memory(5), 0, expected=2, clock=now)
    buffer.join("first", 0)
    filled(buffer, 50)
    read(buffer, "first", range(5))
    now.seconds = module.JOIN_SECONDS + 1
    assert read(buffer, "first", range(5, 50)) == [f"piece {n}" for n in range(5, 50)]
    assert not buffer.join("second", 0)


def test_readers_that_are_out_of_step_do_not_wait_for_each_other():
    """A trial that began again has a scan of its own: nobody else joins it, nor the other's next one."""
    memory = Memory(4)
    one, two = (PieceBuffer(memory, 0, expected=2, clock=Now()) for _ in range(2))
    one.join("a", 0), two.join("b", 0)
    filled(one, 30), filled(two, 30)
    assert settled(one) + settled(two) >= 4
    found = {}
    threads = [
        threading.Thread(
            target=lambda name=name, scan=scan: found.update({name: read(scan, name, range(30))})
        )
        for name, scan in (("a", one), ("b", two))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(2 * ENOUGH)
    wanted = [f"piece {n}" for n in range(30)]
    assert found == {"a": wanted, "b": wanted}


def test_a_process_that_waits_at_two_scans_does_not_count_as_two():
    memory = Memory(2)
    one, two = (PieceBuffer(memory, 0, expected=2, clock=Now()) for _ in range(2))
    for scan, name in ((one, "a"), (two, "b")):
        scan.join(name, 0, "process")
        filled(scan, 9)
    assert read(one, "a", [0]) == read(two, "b", [0]) == ["piece 0"]
    ahead = threading.Thread(target=lambda: one.take("a", 8, 8, 0.3))
    ahead.start()
    assert two.take("b", 8, 8, 0.3).state == "wait"
    ahead.join()
    assert one.is_awaiting and two.is_awaiting


def test_fewer_readers_are_expected_once_there_are_fewer():
    buffer = PieceBuffer(Memory(2), 0, expected=3, clock=Now())
    buffer.join("a", 0)
    filled(buffer, 9)
    read(buffer, "a", [0, 1])
    buffer.expect_at_most(1)
    assert read(buffer, "a", range(2, 9)) == [f"piece {n}" for n in range(2, 9)]


def test_a_reader_joins_where_its_piece_is_held_or_soon_comes():
    buffer = PieceBuffer(Memory(4), 10, clock=Now())
    buffer.join("a", 10)
    filled(buffer, 100)
    read(buffer, "a", range(10, 20))
    assert settled(buffer)
    assert not buffer.join("late", 10)
    assert not buffer.join("other", 500)
    assert buffer.join("near", buffer._end)


def test_a_reader_that_leaves_lets_go():
    memory = Memory(5)
    buffer = PieceBuffer(memory, 0, expected=2)
    buffer.join("a", 0), buffer.join("gone", 0)
    filled(buffer, 50)
    read(buffer, "a", range(5))
    buffer.leave("gone")
    assert read(buffer, "a", range(5, 50)) == [f"piece {n}" for n in range(5, 50)]
    buffer.leave("a")
    assert buffer.is_idle
    buffer.close()
    assert memory.used == 0 and not memory.buffers


def test_a_reader_for_which_others_wait_too_long_is_detached():
    now = Now()
    buffer = PieceBuffer(Memory(5), 0, expected=2, patience=30, clock=now)
    buffer.join("fast", 0), buffer.join("slow", 0)
    filled(buffer, 50)
    read(buffer, "slow", [0]), read(buffer, "fast", range(5))
    got = []
    waiting = threading.Thread(target=lambda: got.append(buffer.take("fast", 5, 5, ENOUGH).piece))
    waiting.start()
    while buffer.readers["fast"].wanted is None:
        time.sleep(0.01)
    time.sleep(0.05)
    assert not got
    now.seconds = 31
    waiting.join(ENOUGH)
    assert got == ["piece 5"]
    assert buffer.take("slow", 1, 1, ENOUGH).state == "detached"


def test_two_scans_share_the_memory_and_both_go_on():
    memory = Memory(4)
    one, two = PieceBuffer(memory, 0, clock=Now()), PieceBuffer(memory, 0, clock=Now())
    one.join("a", 0), two.join("b", 0)
    filled(one, 30)
    assert settled(one) == 4
    filled(two, 30)
    assert read(two, "b", range(30)) == [f"piece {n}" for n in range(30)]
    assert read(one, "a", range(30)) == [f"piece {n}" for n in range(30)]


def test_a_failure_reaches_every_reader_after_the_pieces_before_it():
    buffer = PieceBuffer(Memory(9), 0)
    buffer.join("a", 0)
    buffer.put("piece 0", 1)
    buffer.end("part-00001.parquet: gone", refused=True)
    assert buffer.take("a", 0, 0, ENOUGH).piece == "piece 0"
    failed = buffer.take("a", 1, 1, ENOUGH)
    assert (failed.state, failed.reason, failed.refused) == (
        "failed",
        "part-00001.parquet: gone",
        True,
    )


def test_a_silent_reader_is_named():
    now = Now()
    buffer = PieceBuffer(Memory(9), 0, clock=now)
    buffer.join("a", 0)
    now.seconds = 9
    assert buffer.silent(10) == []
    now.seconds = 11
    assert buffer.silent(10) == ["a"]


def test_a_closed_scan_ends_its_producer_and_its_readers():
    buffer = PieceBuffer(Memory(1), 0)
    buffer.join("a", 0)
    thread = filled(buffer, 50)
    buffer.close()
    thread.join(ENOUGH)
    assert not thread.is_alive()
    assert buffer.take("a", 0, 0, ENOUGH).state == "detached"


def test_a_reader_that_only_reads_ahead_does_not_make_the_memory_grow():
    """Its process still works on what it has; once that waits, the piece comes."""
    memory = Memory(3)
    buffer = PieceBuffer(memory, 0)
    buffer.join("a", 0)
    filled(buffer, 9)
    assert settled(buffer) == 3
    assert buffer.take("a", 3, 0, 0.1, urgent=False).state == "wait"
    got = []
    ahead = threading.Thread(target=lambda: got.append(buffer.take("a", 3, 0, ENOUGH, False).piece))
    ahead.start()
    while buffer.readers["a"].wanted is None:
        time.sleep(0.01)
    buffer.hurry("a")
    ahead.join(ENOUGH)
    assert got == ["piece 3"] and memory.most == 4


def test_a_process_that_began_to_wait_before_its_call_arrived_is_not_forgotten():
    buffer = PieceBuffer(Memory(3), 0)
    buffer.join("a", 0)
    filled(buffer, 9)
    assert settled(buffer) == 3
    buffer.hurry("a")
    assert buffer.take("a", 3, 0, ENOUGH, urgent=False).piece == "piece 3"
    assert buffer.take("a", 4, 0, 0.1, urgent=False).state == "wait", "only that call was urgent"


def test_a_pause_that_arrives_late_does_not_stop_a_reader_that_has_gone_on():
    buffer = PieceBuffer(Memory(9), 0)
    buffer.join("a", 0)
    filled(buffer, 9)
    read(buffer, "a", range(4))
    buffer.pause("a", 3)
    assert not buffer.readers["a"].paused


def test_readers_that_still_look_at_the_rows_come_to_the_scan_later():
    """The first of a wave waits at the scan, the other at a look that the first has behind it."""
    memory = Memory(4)
    scan = PieceBuffer(memory, 0, expected=2, clock=lambda: 0.0, scan="windows")
    scan.join("first", 0, "one")
    filled(scan, 20)
    assert settled(scan) == 4
    look = PieceBuffer(memory, 0, expected=2, clock=lambda: 1.0, scan="look")
    look.join("looks", 0, "two")
    filled(look, 3)
    ahead = threading.Thread(target=read, args=(scan, "first", range(20)), daemon=True)
    ahead.start()
    assert read(look, "looks", range(3)) == ["piece 0", "piece 1", "piece 2"]
    look.leave("looks")
    assert scan.expected == 2 and scan.join("second", 0, "two"), "no piece was dropped"
    assert read(scan, "second", range(20)) == [f"piece {n}" for n in range(20)]
    ahead.join(ENOUGH)


def test_readers_of_one_process_never_wait_for_each_other_for_ever():
    """One of them is behind, and does not move while its process waits for the other."""
    buffer = PieceBuffer(Memory(3), 0, expected=2)
    buffer.join("behind", 0, "process"), buffer.join("before", 0, "process")
    filled(buffer, 9)
    read(buffer, "behind", [0])
    assert read(buffer, "before", range(9)) == [f"piece {n}" for n in range(9)]


def test_a_piece_is_kept_for_a_reader_that_pauses_but_not_for_ever():
    now = Now()
    buffer = PieceBuffer(Memory(4), 0, expected=2, clock=now)
    buffer.join("a", 0), buffer.join("paused", 0)
    filled(buffer, 30)
    read(buffer, "paused", range(3))
    buffer.pause("paused", 3)
    assert read(buffer, "a", range(7)) == [f"piece {n}" for n in range(7)]
    assert buffer.take("a", 7, 7, 0.1).state == "wait"
    assert read(buffer, "paused", [3]) == ["piece 3"]
    buffer.pause("paused", 4)
    now.seconds = module.PAUSE_SECONDS + 1
    assert read(buffer, "a", range(7, 30)) == [f"piece {n}" for n in range(7, 30)]
    assert buffer.take("paused", 4, 4, ENOUGH).state == "detached"
