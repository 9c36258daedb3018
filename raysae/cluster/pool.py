"""One pool for committed work: each item is done once by a Ray worker, even if workers are lost.

An item that is committed already is skipped. A lost worker is replaced, and another one does its item.
"""

import re
from collections import Counter, deque
from collections.abc import Callable, Generator, Hashable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

import ray
from ray.exceptions import RayError, RayTaskError

from raysae.cluster.alarm import HangAlarm
from raysae.cluster.placement import Placement
from raysae.cluster.pool_worker import (
    Begun,
    Broken,
    Earlier,
    HandedOver,
    Lost,
    Outcome,
    PoolWorker,
    Progress,
    Work,
    do_here,
    failure_of,
)
from raysae.redaction import redacted

__all__ = ["Outcome", "Work", "map_committed", "run_in_processes"]

Item = TypeVar("Item", bound=Hashable)
Value = TypeVar("Value")

MESSAGES_A_SECOND = 4.0
"""At most so many progress reports a second, from all workers together."""
LEAST_STARTS = 3
"""A slot is given up after so many lost workers in a row that began no item, or after more
if ``retries`` is higher."""


def map_committed(
    items: Iterable[Item],
    work: Work,
    *,
    committed: Callable[[Item], Value | None],
    placement: Placement,
    retries: int,
    hang_seconds: float | None,
    on_progress: Callable[[Item, Any], None] = lambda item, report: None,
    label: Callable[[Item], str] = str,
    environment: Mapping[str, str] | None = None,
) -> Generator[tuple[Item, Outcome[Value]], None, None]:
    """Do every item that is not committed yet; yield each item with its outcome.

    ``committed(item)`` returns the committed value, or None; committed items are yielded first. Up to
    ``placement.workers`` processes do the other items, each with a worker made by ``work``: actors of
    their own on GPUs; on CPUs those that Ray keeps for tasks, which go on to other work. When a worker
    is lost, another worker does its item, up to ``retries`` times. An item fails at once when it raises
    an exception or makes no step for ``hang_seconds``. When no worker can be made, all remaining items
    fail with that reason. ``on_progress(item, report)`` receives the workers' reports during an item.
    ``label(item)`` names its task in Ray's dashboard, and its process in ``ps``. Processes for tasks
    that have the variables ``environment`` go on to work with the same ones alone.

    To stop early, close the iterator (``contextlib.closing``). This ends the items under way; an
    exception or a KeyboardInterrupt in the loop does so too.
    """
    missing = []
    for item in items:
        value = committed(item)
        if value is None:
            missing.append(item)
        else:
            yield item, Outcome(value)
    if not missing:
        return
    options = _options(placement, environment)
    pool = _Pool(
        missing,
        work,
        committed,
        placement.workers,
        options,
        retries,
        hang_seconds,
        on_progress,
        label,
    )
    try:
        yield from pool.outcomes()
    finally:
        pool.stop()


def run_in_processes(
    function: Callable[[], object],
    placement: Placement,
    most: int,
    environment: Mapping[str, str] | None = None,
) -> None:
    """Call ``function`` in up to ``most`` of the processes that the next ``map_committed`` with this
    placement and environment uses, for what it imports there; this does not wait for it.

    It holds what is reserved for a worker until it returns. On GPUs it does nothing: actors end with
    their pool.
    """
    if placement.gpus:
        return
    task = ray.remote(function).options(
        **_options(placement, environment), max_retries=0, name=function.__name__
    )
    for _ in range(min(placement.workers, most)):
        task.remote()


def _options(placement: Placement, environment: Mapping[str, str] | None) -> dict[str, Any]:
    options: dict[str, Any] = dict(placement.ray_options)
    if environment and not placement.gpus:
        options["runtime_env"] = {"env_vars": dict(environment)}
    return options


@dataclass(eq=False)
class _Slot:
    """A place for one process at a time, and the item that it works on."""

    process: "_Actor | _Tasks | None" = None
    stream: Any = None
    """The messages about its item; None while it has no item."""
    item: Any = None
    handed: list[Any] = field(default_factory=list)
    """The item that a thread of its actor commits, while the actor does another; or none."""
    begun: Begun | None = None
    failed_starts: int = 0
    """How many processes in a row were lost here before they began an item."""
    given_up: bool = False

    def give(self, item: Any, label: str) -> None:
        assert self.process is not None
        self.item, self.begun = item, None
        self.stream = self.process.do(item, f"PoolWorker.do {label}")

    def settle(self, label: Callable[[Any], str]) -> None:
        """Ask how the item ends that was handed over, as there is no other to do meanwhile."""
        assert isinstance(self.process, _Actor)
        (self.item,), self.handed, self.begun = self.handed, [], None
        self.stream = self.process.settle(f"PoolWorker.settle {label(self.item)}")

    def end(self) -> None:
        """End the process, if it is alive and has an item, or is an actor."""
        if self.process is not None:
            with suppress(Exception):  # Ray itself may be gone
                self.process.end(self.stream)
        self.process = self.stream = None


class _Actor:
    """An actor, which ends with the pool and gives its GPU's memory back."""

    def __init__(self, options: dict[str, Any], arguments: tuple[Any, ...]):
        actor = ray.remote(PoolWorker).options(**options, max_restarts=0, max_task_retries=0)
        self.actor = actor.remote(*arguments, beside=True)

    def do(self, item: Any, name: str) -> Any:
        """Begin an item; the stream of its messages."""
        return self.actor.do.options(name=name).remote(item)

    def settle(self, name: str) -> Any:
        """Wait for the item that was handed over; the stream of its messages."""
        return self.actor.settle.options(name=name).remote()

    def end(self, stream: Any) -> None:
        """End the process."""
        ray.kill(self.actor)


class _Tasks:
    """A process for tasks at a time, most often the same, which goes on to other work."""

    def __init__(self, options: dict[str, Any], arguments: tuple[Any, ...]):
        self.arguments, self.task = arguments, ray.remote(do_here)
        self.options = {**options, "num_returns": "streaming", "max_retries": 0}

    def do(self, item: Any, name: str) -> Any:
        """Begin an item; the stream of its messages."""
        return self.task.options(**self.options, name=name).remote(*self.arguments, item)

    def end(self, stream: Any) -> None:
        """End the process that has the item of this stream."""
        if stream is not None:
            ray.cancel(stream, force=True)


class _Pool:
    """The driver's side: gives items to actors and collects their outcomes."""

    def __init__(
        self,
        items: list[Any],
        work: Work,
        committed: Callable[[Any], Any],
        workers: int,
        options: dict[str, Any],
        retries: int,
        hang_seconds: float | None,
        on_progress: Callable[[Any, Any], None],
        label: Callable[[Any], str],
    ):
        self.committed, self.on_progress, self.label = committed, on_progress, label
        self.retries, self.hang_seconds = retries, hang_seconds
        self.waiting, self.losses = deque(items), Counter[Any]()
        self.slots = [_Slot() for _ in range(min(workers, len(items)))]
        self.work = ray.put(work)
        self.report_seconds = len(self.slots) / MESSAGES_A_SECOND
        self.options = options
        self.no_worker: Outcome[Any] = Outcome(failed="no worker could be started")
        """The outcome of the remaining items when every slot was given up."""

    def outcomes(self) -> Iterator[tuple[Any, Outcome[Any]]]:
        """Every item with its outcome, as soon as there is one."""
        while True:
            self._hand_out()
            busy = {slot.stream: slot for slot in self.slots if slot.stream is not None}
            if not busy:
                break
            (ready,), _ = ray.wait(list(busy), num_returns=1)
            yield from self._next_message(busy[ready])
        while self.waiting:
            yield self.waiting.popleft(), self.no_worker

    def stop(self) -> None:
        """End all items under way, and all actors."""
        for slot in self.slots:
            slot.end()

    def _hand_out(self) -> None:
        """Give waiting items to free slots, first to those that have a process."""
        free = [slot for slot in self.slots if slot.stream is None and not slot.given_up]
        for slot in sorted(free, key=lambda slot: slot.process is None):
            if not self.waiting:
                if slot.handed:
                    slot.settle(self.label)
                continue
            if slot.process is None:
                slot.process = self._new_process()
            item = self.waiting.popleft()
            slot.give(item, self.label(item))

    def _new_process(self) -> "_Actor | _Tasks":
        # in a list: the worker then fetches the object itself, and can report an error in reading it
        arguments = [self.work], self.hang_seconds, self.report_seconds
        return (_Actor if self.options["num_gpus"] else _Tasks)(self.options, arguments)

    def _next_message(self, slot: _Slot) -> list[tuple[Any, Outcome[Any]]]:
        """Handle the slot's next message; return the items that have ended with it."""
        try:
            message = ray.get(next(slot.stream))
        except RayTaskError as error:  # the message could not be pickled
            message = failure_of(error.cause if isinstance(error.cause, Exception) else error)
        except RayError as error:
            return self._lost(slot, _reason(error))
        if isinstance(message, Begun):
            slot.begun, slot.failed_starts = message, 0
        elif isinstance(message, Progress):
            self.on_progress(slot.item, message.report)
        elif isinstance(message, Lost):
            return self._lost(slot, message.reason)
        elif isinstance(message, Broken):
            self._give_up(slot, message.outcome)
            self.waiting.appendleft(slot.item)
        elif isinstance(message, Earlier) and slot.handed:
            return [(slot.handed.pop(), message.outcome)]
        elif isinstance(message, HandedOver):
            self._end_stream(slot)
            slot.handed.append(slot.item)
        else:
            self._end_stream(slot)
            return [(slot.item, message.outcome if isinstance(message, Earlier) else message)]
        return []

    @staticmethod
    def _end_stream(slot: _Slot) -> None:
        with suppress(RayError, StopIteration):  # it ends: its process is free for the next item
            next(slot.stream)
        slot.stream = None

    def _lost(self, slot: _Slot, reason: str) -> list[tuple[Any, Outcome[Any]]]:
        """The slot's process was lost: end its items, or put them back for another one."""
        slot.end()
        handed, slot.handed = slot.handed, []
        ended = [(slot.item, self._lost_item(slot, reason))]
        for item in handed:  # more is forgiven to it, as the other one may kill its workers
            ended.append((item, self._again(item, reason, self.retries + 1)))
            if ended[-1][1] is None:
                self.waiting.remove(item)
                self.waiting.appendleft(item)
        return [(item, outcome) for item, outcome in ended if outcome is not None]

    def _lost_item(self, slot: _Slot, reason: str) -> Outcome[Any] | None:
        """How the item ended that the lost process did; None when it is put back."""
        value = self.committed(slot.item)
        if value is not None:
            return Outcome(value)
        if slot.begun is None:
            self._count_failed_start(slot, reason)
        else:
            alarm = HangAlarm(slot.begun.hung, self.hang_seconds)
            if alarm.rang:
                return Outcome(failed=alarm.reason, lost=True)
            alarm.file.unlink(missing_ok=True)
        return self._again(slot.item, reason, self.retries)

    def _again(self, item: Any, reason: str, retries: int) -> Outcome[Any] | None:
        """How a lost item ended: it is committed, or was lost too often; None when it is put back."""
        value = self.committed(item)
        if value is not None:
            return Outcome(value)
        self.losses[item] += 1
        if self.losses[item] > retries:
            return Outcome(failed=f"worker lost {_times(self.losses[item])}: {reason}", lost=True)
        self.waiting.append(item)  # last in the queue, because the item itself may kill its workers
        return None

    def _count_failed_start(self, slot: _Slot, reason: str) -> None:
        slot.failed_starts += 1
        if slot.failed_starts >= max(LEAST_STARTS, self.retries + 1):
            times = _times(slot.failed_starts)
            self._give_up(
                slot, Outcome(failed=f"worker lost {times} at its start: {reason}", lost=True)
            )

    def _give_up(self, slot: _Slot, why: Outcome[Any]) -> None:
        slot.end()
        slot.given_up, self.no_worker = True, why


def _reason(error: RayError) -> str:
    """Why the worker ended, from Ray's message without its general advice."""
    text = str(error).strip()
    found = re.search(r"exit detail: (.+?)\.?(?= Some common causes|\n|$)", text)
    line = found[1] if found else (text.splitlines() or [""])[0]
    return f"{type(error).__name__}: {redacted(line)} (killed, crashed, or out of memory)"


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"
