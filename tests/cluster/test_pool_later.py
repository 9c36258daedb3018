"""Items that a thread of their worker commits while the worker does the next one."""

import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor, wait

import pytest

from raysae.cluster import pool
from raysae.cluster.later import Later
from raysae.cluster.placement import Placement
from raysae.cluster.pool import Work, map_committed
from raysae.errors import UserError


class Committer:
    """Does items by their names, each committed by a thread: ``slow`` waits until the next item has
    begun; ``refuse`` and ``raise`` fail in the thread; ``die_once`` kills its process as the item is
    done; ``now`` is committed by the worker itself; ``lost_once`` loses the GPU."""

    def __init__(self, folder):
        self.folder, self.pool, self.last = folder, ThreadPoolExecutor(1), None
        self.begun = threading.Event()

    def hung_file(self, item):
        return self.folder / f"{item}.hung.txt"

    def note(self, word):
        with (self.folder / "log").open("a") as log:
            log.write(word + "\n")

    def do(self, item, alive):
        self.note(f"do {item}")
        self.begun.set()
        tries = self.folder / f"{item}.tries"
        tries.write_text((tries.read_text() if tries.exists() else "") + "x")
        what, first = item.split("-")[0], tries.read_text() == "x"
        if what == "die_once" and first:
            time.sleep(0.3)
            os.kill(os.getpid(), signal.SIGKILL)
        if what == "lost_once" and first:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        if what == "now":
            return self.commit(item)
        if self.last is not None:
            wait([self.last])
        self.begun.clear()
        self.last = self.pool.submit(self.commit, item)
        return Later(self.last.result)

    def commit(self, item):
        what = item.split("-")[0]
        if what == "slow":
            assert self.begun.wait(20)
        if what == "stuck":
            time.sleep(1000)
        if what == "refuse":
            raise UserError("rows are not finite")
        if what == "raise":
            raise KeyError("a figure is missing")
        self.note(f"committed {item}")
        (self.folder / item).write_text("")
        return item.upper()


@pytest.fixture
def actors(monkeypatch):
    """Workers are actors, as on GPUs."""
    monkeypatch.setattr(pool, "_Tasks", pool._Actor)


def test_on_cpus_each_item_is_waited_for(connected_ray, tmp_path):
    ended = mapped(tmp_path, ["a", "refuse-1", "b"])
    assert [item for item, _ in ended] == ["a", "refuse-1", "b"]
    assert [one.value for _, one in ended] == ["A", None, "B"] and ended[1][1].refused
    log = (tmp_path / "log").read_text().splitlines()
    assert log == ["do a", "committed a", "do refuse-1", "do b", "committed b"]


def mapped(folder, items, *, workers=1, retries=2, hang=None):
    """The items with their outcomes, in the order in which they ended."""

    def committed(item):
        return f"there: {item}" if (folder / item).is_file() else None

    return list(map_committed(
        items, Work(Committer, (folder,)), committed=committed,
        placement=Placement(cpus=1, gpus=0, workers=workers), retries=retries, hang_seconds=hang,
    ))  # fmt: skip


def test_the_next_item_begins_while_one_is_committed_and_the_last_one_is_waited_for(
    connected_ray, actors, tmp_path
):
    items = ["slow-1", "slow-2", "a"]
    ended = mapped(tmp_path, items)
    assert [item for item, _ in ended] == items
    assert [outcome.value for _, outcome in ended] == [item.upper() for item in items]
    log = (tmp_path / "log").read_text().splitlines()
    assert log.index("do slow-2") < log.index("committed slow-1")
    assert log.index("committed slow-1") < log.index("committed slow-2") < log.index("committed a")
    assert not list(tmp_path.glob("*.hung.txt"))


def test_all_workers_end_what_they_commit(connected_ray, actors, tmp_path):
    items = [f"item-{number}" for number in range(9)]
    ended = dict(mapped(tmp_path, items, workers=2))
    assert {item: one.value for item, one in ended.items()} == {i: i.upper() for i in items}


def test_what_a_thread_raises_is_the_failure_of_its_item_and_comes_in_order(
    connected_ray, actors, tmp_path
):
    items = ["a", "refuse-1", "raise-1", "now-1", "refuse-2"]
    ended = mapped(tmp_path, items)
    assert [item for item, _ in ended] == items
    found = dict(ended)
    assert found["refuse-1"].refused and found["refuse-1"].failed == "rows are not finite"
    assert found["raise-1"].failed == "KeyError: 'a figure is missing'"
    assert "commit" in found["raise-1"].trace and not found["raise-1"].refused
    assert found["a"].value == "A" and found["now-1"].value == "NOW-1" and found["refuse-2"].refused


def test_a_killed_worker_costs_at_most_what_was_not_committed(connected_ray, actors, tmp_path):
    ended = dict(mapped(tmp_path, ["a", "b", "slow-1", "die_once-1", "c"], retries=1))
    assert {item: one.failed for item, one in ended.items()} == dict.fromkeys(ended)
    assert len(ended) == 5 and all((tmp_path / item).is_file() for item in ended)
    assert (tmp_path / "a.tries").read_text() == "x"
    assert (tmp_path / "die_once-1.tries").read_text() == "xx"


def test_an_item_beside_one_that_kills_is_forgiven_without_retries(connected_ray, actors, tmp_path):
    ended = dict(mapped(tmp_path, ["stuck-1", "die_once-1"], retries=0, hang=3.0))
    assert ended["die_once-1"].lost and "worker lost once" in ended["die_once-1"].failed
    assert ended["stuck-1"].failed.startswith("hung: no step for 3 s")
    assert "in commit" in (tmp_path / "stuck-1.hung.txt").read_text()
    assert (tmp_path / "stuck-1.tries").read_text() == "xx", "lost once, then alone"


def test_a_worker_that_loses_its_gpu_commits_what_it_has(connected_ray, actors, tmp_path):
    ended = mapped(tmp_path, ["a", "lost_once-1", "b"])
    assert ended[0][0] == "a" and (tmp_path / "a.tries").read_text() == "x"
    assert {item: one.value for item, one in ended} == {
        "a": "A", "lost_once-1": "LOST_ONCE-1", "b": "B"
    }  # fmt: skip


@pytest.mark.parametrize("workers", [1, 3])
def test_what_is_committed_is_not_done_again(connected_ray, actors, tmp_path, workers):
    mapped(tmp_path, ["a", "b", "c"], workers=workers)
    log = (tmp_path / "log").read_text()
    again = dict(mapped(tmp_path, ["a", "b", "c"], workers=workers))
    assert again["b"].value == "there: b" and (tmp_path / "log").read_text() == log
