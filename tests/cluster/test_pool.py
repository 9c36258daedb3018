"""The pool of committed work: what is skipped, tried again, given up, and told."""

import _thread
import os
import signal
import threading
import time
from contextlib import closing
from types import SimpleNamespace

import numpy as np
import pytest
import ray

from raysae.cluster import pool
from raysae.cluster.kept_workers import kept_workers, workers_kept
from raysae.cluster.placement import Placement
from raysae.cluster.pool import Work, map_committed, start_workers
from raysae.errors import UserError
from tests.processes import is_alive, processes_below


class Doer:
    """Does items by their names: ``die``, ``die_once``, ``die_late``, ``raise``, ``refuse``, ``hang``,
    ``slow``, ``tell``; all others at once. What is done is a file of that name, with its process."""

    def __init__(self, folder, trouble=""):
        self.folder = folder
        with (folder / "starts").open("a") as starts:
            starts.write("x")
        if trouble == "raise":
            raise OSError("no such model\nand more")
        if trouble == "refuse":
            raise UserError("the model has 4 layers; name one of them")
        if trouble == "die" or (trouble == "die_once" and starts_in(folder) == 1):
            os.kill(os.getpid(), signal.SIGKILL)

    def hung_file(self, item):
        return self.folder / f"{item}.hung.txt"

    def do(self, item, alive):
        with (self.folder / f"{item}.tries").open("a") as tries:
            tries.write("x")
        what = item.split("-")[0]
        if what == "tell":
            return self._tell(item)
        getattr(self, what, lambda item: None)(item)
        return self._commit(item)

    def _commit(self, item):
        (self.folder / item).write_text(str(os.getpid()))
        return item.upper()

    def _tell(self, item):
        for share in (0.25, 0.5, 0.75):
            time.sleep(0.3)
            yield share
        return self._commit(item)

    def named(self, item):
        (self.folder / f"{item}.task").write_text(ray.get_runtime_context().get_task_name())

    def die(self, item):
        os.kill(os.getpid(), signal.SIGKILL)

    def die_once(self, item):
        if len((self.folder / f"{item}.tries").read_text()) == 1:
            self.die(item)

    def die_late(self, item):
        self._commit(item)
        self.die(item)

    def lost_once(self, item):
        tries = self.folder / f"{item}.tries"
        if tries.read_text() == "x":
            tries.write_text(f"x{os.getpid()},")
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    def hang(self, item):
        time.sleep(1000)

    def slow(self, item):
        time.sleep(1000)

    def refuse(self, item):
        raise UserError("rows are not finite\n  drop them")

    def __getattr__(self, name):
        if name == "raise":
            return self._raise
        raise AttributeError(name)

    def _raise(self, item):
        raise KeyError("a figure\nis missing")


def starts_in(folder):
    return len((folder / "starts").read_text())


def mapped(
    folder, items, *, workers=2, cpus=1, retries=2, hang=None, trouble="", told=None, label=str
):
    """``map_committed`` over named items."""

    def committed(item):
        return f"there: {item}" if (folder / item).is_file() else None

    return map_committed(
        items, Work(Doer, (folder, trouble)), committed=committed,
        placement=Placement(cpus=cpus, gpus=0, workers=workers), retries=retries, hang_seconds=hang,
        on_progress=lambda item, report: told.append((item, report)), label=label,
    )  # fmt: skip


def outcomes(*args, **settings):
    ended = list(mapped(*args, **settings))
    found = dict(ended)
    assert len(found) == len(ended), "each item once"
    return found


def wait_until(condition, seconds=20):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.05)


def test_what_is_committed_comes_first_and_starts_nothing(connected_ray, tmp_path):
    for name in ("b", "d"):
        (tmp_path / name).write_text("")
    found = outcomes(tmp_path, ["a", "b", "c", "d"])
    assert list(found)[:2] == ["b", "d"] and set(found) == {"a", "b", "c", "d"}
    values = {item: outcome.value for item, outcome in found.items()}
    assert values == {"a": "A", "b": "there: b", "c": "C", "d": "there: d"}
    starts = starts_in(tmp_path)
    assert {o.value for o in outcomes(tmp_path, ["a", "b"]).values()} == {"there: a", "there: b"}
    assert starts_in(tmp_path) == starts and not (tmp_path / "b.tries").exists()


def test_an_item_is_a_task_named_by_its_label(connected_ray, tmp_path):
    outcomes(tmp_path, ["named-1", "named-2"], label=lambda item: f"paint {item}")
    for item in ("named-1", "named-2"):
        assert (tmp_path / f"{item}.task").read_text() == f"PoolWorker.do paint {item}"


def test_a_lost_worker_costs_its_item_nothing(connected_ray, tmp_path):
    items = ["a", "die_once-1", "b", "die_once-2", "c", "d"]
    found = outcomes(tmp_path, items)
    assert {item: outcome.value for item, outcome in found.items()} == {i: i.upper() for i in items}
    assert (tmp_path / "die_once-1.tries").read_text() == "xx"
    assert (tmp_path / "a.tries").read_text() == "x"
    assert not list(tmp_path.glob("*.hung.txt"))


@pytest.mark.parametrize("workers", [1, 2])
def test_an_item_that_kills_its_workers_leaves_the_others_alone(connected_ray, tmp_path, workers):
    items = ["die-1", "a", "b", "c", "d", "e"]
    found = outcomes(tmp_path, items, workers=workers, retries=1)
    poisoned = found.pop("die-1").failed
    assert poisoned.startswith("worker lost 2 times: ActorDiedError: Worker unexpectedly exits")
    assert (tmp_path / "die-1.tries").read_text() == "xx"
    assert all(outcome.failed is None for outcome in found.values()) and len(found) == 5


def test_a_worker_that_lost_its_gpu_ends_and_another_does_its_item(connected_ray, tmp_path):
    found = outcomes(tmp_path, ["lost_once-1", "a", "b"], workers=1)
    assert {item: outcome.value for item, outcome in found.items()} == {
        "lost_once-1": "LOST_ONCE-1", "a": "A", "b": "B"
    }  # fmt: skip
    lost = int((tmp_path / "lost_once-1.tries").read_text()[1:].partition(",")[0])
    assert lost != int((tmp_path / "lost_once-1").read_text()) and starts_in(tmp_path) == 2
    wait_until(lambda: not is_alive(lost))


def test_what_was_committed_before_the_worker_died_is_done(connected_ray, tmp_path):
    found = outcomes(tmp_path, ["die_late-1", "a"], retries=0, workers=1)
    assert found["die_late-1"].value == "there: die_late-1"
    assert (tmp_path / "die_late-1.tries").read_text() == "x"
    assert found["a"].value == "A"


def test_an_exception_fails_its_item_at_once_and_the_worker_serves_on(connected_ray, tmp_path):
    found = outcomes(tmp_path, ["raise-1", "refuse-1", "a"], workers=1)
    assert found["raise-1"].failed == "KeyError: 'a figure\\nis missing'"
    assert "_raise" in found["raise-1"].trace and not found["raise-1"].refused
    assert found["refuse-1"].failed == "rows are not finite\n  drop them"
    assert found["refuse-1"].refused and not found["refuse-1"].trace
    assert found["a"].value == "A" and starts_in(tmp_path) == 1


@pytest.mark.parametrize(
    ("trouble", "reason"),
    [
        ("raise", "no such model"),
        ("refuse", "the model has 4 layers; name one of them"),
        ("die", "worker lost 3 times at its start: ActorDiedError: "),
    ],
)
def test_where_no_worker_can_be_made_all_items_fail_by_the_reason(
    connected_ray, tmp_path, trouble, reason
):
    items = list("abcdefgh")
    found = outcomes(tmp_path, items, trouble=trouble)
    assert found.keys() == set(items)
    assert all(outcome.failed.startswith(reason) for outcome in found.values())
    assert all(outcome.refused == (trouble == "refuse") for outcome in found.values())
    assert starts_in(tmp_path) <= (2 if trouble != "die" else 6)


def test_a_worker_that_was_killed_at_its_start_is_replaced(connected_ray, tmp_path):
    found = outcomes(tmp_path, ["a", "b"], workers=1, trouble="die_once")
    assert {outcome.value for outcome in found.values()} == {"A", "B"}


def test_an_item_that_hangs_fails_with_the_place_and_is_not_tried_again(connected_ray, tmp_path):
    found = outcomes(tmp_path, ["hang-1", "a", "b"], workers=1, hang=1.0)
    file = tmp_path / "hang-1.hung.txt"
    assert found["hang-1"].failed == f"hung: no step for 1 s; see {file}"
    assert "in hang" in file.read_text()
    assert (tmp_path / "hang-1.tries").read_text() == "x"
    assert found["a"].value == "A" and found["b"].value == "B"
    assert list(tmp_path.glob("*.hung.txt")) == [file]


def test_progress_is_told_in_mid_item(connected_ray, tmp_path):
    told = []
    found = outcomes(tmp_path, ["tell-1"], workers=1, told=told)
    assert found["tell-1"].value == "TELL-1"
    assert told == [("tell-1", 0.25), ("tell-1", 0.5), ("tell-1", 0.75)]
    few = []
    slow = pool.MESSAGES_A_SECOND
    try:
        pool.MESSAGES_A_SECOND = 0.1
        outcomes(tmp_path, ["tell-2"], workers=1, told=few)
    finally:
        pool.MESSAGES_A_SECOND = slow
    assert few == []


@pytest.fixture
def interruptible():
    """Ctrl-C raises KeyboardInterrupt; a process that was started in the background ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("how", ["closed", "interrupted"])
def test_a_stop_ends_the_actors(connected_ray, tmp_path, how, interruptible):
    items = ["a", "slow-1", "slow-2"]
    with closing(mapped(tmp_path, items, workers=2)) as ended:
        assert next(ended)[0] == "a"
        wait_until((tmp_path / "slow-1.tries").exists)
        pids = processes_below(b"ray::PoolWorker")
        assert pids
        if how == "interrupted":
            threading.Timer(0.5, _thread.interrupt_main).start()
            with pytest.raises(KeyboardInterrupt):
                list(ended)
    wait_until(lambda: not any(is_alive(pid) for pid in pids))


def test_the_order_of_items_and_the_number_of_workers_never_show(connected_ray, tmp_path):
    items = [f"item-{number}" for number in range(12)]
    found = []
    for number, (order, workers) in enumerate(((items, 1), (items[::-1], 3))):
        folder = tmp_path / str(number)
        folder.mkdir()
        found.append({i: o.value for i, o in outcomes(folder, order, workers=workers).items()})
    assert found[0] == found[1] == {item: item.upper() for item in items}


class Heavy(Doer):
    """A worker that needs much."""

    def __init__(self, folder, ballast):
        super().__init__(folder)
        assert ballast.nbytes == 8_000_000


def test_a_call_sends_the_item_and_a_worker_gets_the_rest_once(
    connected_ray, tmp_path, monkeypatch
):
    sent, actors = [], []

    def spy(call):
        def remote(*args, **kwargs):
            sent.append(len(ray.cloudpickle.dumps((args, kwargs))))
            return call(*args, **kwargs)

        return remote

    new_actor, options = pool._Pool._new_actor, ray.actor.ActorClass.options

    def spied_options(cls, **settings):
        made = options(cls, **settings)
        made.remote = spy(made.remote)
        return made

    def spied_actor(self):
        actors.append(new_actor(self))
        do = actors[-1].do

        def named(**options):
            return SimpleNamespace(remote=spy(do.options(**options).remote))

        return SimpleNamespace(do=SimpleNamespace(options=named))

    monkeypatch.setattr(ray.actor.ActorClass, "options", spied_options)
    monkeypatch.setattr(pool._Pool, "_new_actor", spied_actor)
    ended = map_committed(
        ["a", "b", "c"], Work(Heavy, (tmp_path, np.zeros(1_000_000))), committed=lambda item: None,
        placement=Placement(cpus=1, gpus=0, workers=1), retries=0, hang_seconds=None,
    )  # fmt: skip
    assert [outcome.value for _, outcome in ended] == ["A", "B", "C"]
    ray.kill(*actors)
    start, *calls = sent
    assert start < 1000 and len(calls) == 3 and max(calls) < 100


def processes_of(found, folder, items):
    assert {item: found[item].value for item in items} == {item: item.upper() for item in items}
    return {(folder / item).read_text() for item in items}


def test_workers_that_are_kept_do_the_items_of_the_next_pool(connected_ray, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    with workers_kept(wanted=2):
        for folder in (first, second):
            folder.mkdir()
        processes_of(outcomes(first, ["a"]), first, ["a"])
        kept = kept_workers()
        assert kept is not None and len(kept.actors) == 2, "one more than the pool had items"
        wait_until(lambda: starts_in(first) == 2)
        items = ["nap-1", "nap-2"]
        used = processes_of(outcomes(second, items), second, items)
        assert starts_in(second) == 2
        assert len(used | {(first / "a").read_text()}) == 2, "no third process"
        assert all(is_alive(int(one)) for one in used)
    wait_until(lambda: not any(is_alive(int(one)) for one in used))
    assert kept_workers() is None


def test_workers_that_were_started_before_their_work_do_it(connected_ray, tmp_path):
    early, folder = tmp_path / "early", tmp_path / "late"
    for one in (early, folder):
        one.mkdir()
    with workers_kept():
        start_workers(Work(Doer, (early,)), Placement(cpus=1, gpus=0, workers=2), most=1)
        wait_until((early / "starts").is_file)
        kept = kept_workers()
        assert kept is not None and len(kept.actors) == 1
        used = processes_of(outcomes(folder, ["a"], workers=1), folder, ["a"])
        assert starts_in(early) == starts_in(folder) == 1 and len(kept.actors) == 1
    wait_until(lambda: not any(is_alive(int(one)) for one in used))


def test_kept_workers_end_for_a_pool_of_another_reservation(connected_ray, tmp_path):
    with workers_kept():
        (used,) = processes_of(outcomes(tmp_path, ["a"], workers=1), tmp_path, ["a"])
        found = outcomes(
            tmp_path, ["b"], workers=1, cpus=4
        )  # all: beside the kept one none are free
        assert processes_of(found, tmp_path, ["b"]) != {used}
        assert not is_alive(int(used))


def test_a_kept_worker_that_was_lost_meanwhile_costs_the_next_item_nothing(connected_ray, tmp_path):
    with workers_kept():
        (used,) = processes_of(outcomes(tmp_path, ["a"], workers=1), tmp_path, ["a"])
        os.kill(int(used), signal.SIGKILL)
        found = outcomes(tmp_path, ["b"], workers=1, retries=0)
        assert processes_of(found, tmp_path, ["b"]) != {used}


def test_a_kept_worker_that_cannot_begin_anew_says_why(connected_ray, tmp_path):
    with workers_kept():
        processes_of(outcomes(tmp_path, ["a"], workers=1), tmp_path, ["a"])
        found = outcomes(tmp_path, ["b"], workers=1, trouble="refuse")
        assert found["b"].failed == "the model has 4 layers; name one of them"


@pytest.mark.parametrize("how", ["close", "raise"])
def test_a_pool_that_is_stopped_keeps_none(connected_ray, tmp_path, how):
    with workers_kept():
        ended = mapped(tmp_path, ["a", "slow"], workers=2)
        with closing(ended) if how == "close" else pytest.raises(KeyError):
            assert next(ended)[0] == "a"
            if how == "raise":
                ended.throw(KeyError("a figure"))
        kept = kept_workers()
        assert kept is not None and kept.actors == []
