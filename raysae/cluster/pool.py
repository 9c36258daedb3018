"""One pool for committed work: each item is done once on a Ray actor, even if workers are lost.

An item that is committed already is skipped. A lost worker is replaced, and another one does its item.
"""

import re
from collections import Counter, deque
from collections.abc import Callable, Generator, Hashable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import ray
from ray.exceptions import RayError, RayTaskError

from raysae.cluster.alarm import HangAlarm
from raysae.cluster.kept_workers import end_actor, kept_workers
from raysae.cluster.placement import Placement
from raysae.cluster.pool_worker import (
    Begun,
    Broken,
    Lost,
    Outcome,
    PoolWorker,
    Progress,
    Work,
    failure_of,
)
from raysae.redaction import redacted

__all__ = ["Outcome", "Work", "map_committed", "start_workers"]

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
) -> Generator[tuple[Item, Outcome[Value]], None, None]:
    """Do every item that is not committed yet; yield each item with its outcome.

    ``committed(item)`` returns the committed value, or None; committed items are yielded first. Up to
    ``placement.workers`` actors do the other items, each with a worker made by ``work``. When a worker
    is lost, another worker does its item, up to ``retries`` times. An item fails at once when it raises
    an exception or makes no step for ``hang_seconds``. When no worker can be made, all remaining items
    fail with that reason. ``on_progress(item, report)`` receives the workers' reports during an item.
    ``label(item)`` names its task in Ray's dashboard, and its process in ``ps``.

    To stop early, close the iterator (``contextlib.closing``). This ends the actors; an exception or a
    KeyboardInterrupt in the loop does so too.
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
    pool = _Pool(missing, work, committed, placement, retries, hang_seconds, on_progress, label)
    try:
        yield from pool.outcomes()
    finally:
        pool.stop()


@dataclass(eq=False)
class _Slot:
    """A place for one actor at a time, and the item that it works on."""

    actor: Any = None
    stream: Any = None
    """The messages about its item; None while it has no item."""
    item: Any = None
    begun: Begun | None = None
    failed_starts: int = 0
    """How many actors in a row were lost here before they began an item."""
    given_up: bool = False
    kept: bool = False
    """Whether its actor served an earlier pool."""

    def give(self, item: Any, label: str) -> None:
        self.item, self.begun = item, None
        self.stream = self.actor.do.options(name=f"PoolWorker.do {label}").remote(item)

    def end(self) -> None:
        """End the actor if it is alive."""
        if self.actor is not None:
            end_actor(self.actor)
        self.actor = self.stream = None


class _Pool:
    """The driver's side: gives items to actors and collects their outcomes."""

    def __init__(
        self,
        items: list[Any],
        work: Work,
        committed: Callable[[Any], Any],
        placement: Placement,
        retries: int,
        hang_seconds: float | None,
        on_progress: Callable[[Any, Any], None],
        label: Callable[[Any], str],
    ):
        self.committed, self.on_progress, self.label = committed, on_progress, label
        self.retries, self.hang_seconds = retries, hang_seconds
        self.waiting, self.losses = deque(items), Counter[Any]()
        self.slots = [_Slot() for _ in range(min(placement.workers, len(items)))]
        self.work = ray.put(work)
        self.report_seconds = len(self.slots) / MESSAGES_A_SECOND
        self.options = _options(placement)
        self.no_worker: Outcome[Any] = Outcome(failed="no worker could be started")
        """The outcome of the remaining items when every slot was given up."""
        self.spare: list[Any] = []
        """Actors without a slot, for a later pool that has more items."""
        self.most = placement.workers

    def outcomes(self) -> Iterator[tuple[Any, Outcome[Any]]]:
        """Every item with its outcome, as soon as there is one."""
        while True:
            self._hand_out()
            self._start_spare()
            busy = {slot.stream: slot for slot in self.slots if slot.stream is not None}
            if not busy:
                break
            (ready,), _ = ray.wait(list(busy), num_returns=1)
            slot = busy[ready]
            outcome = self._next_message(slot)
            if outcome is not None:
                yield slot.item, outcome
        while self.waiting:
            yield self.waiting.popleft(), self.no_worker
        self._keep_idle()

    def stop(self) -> None:
        """End all actors, except those that were left to the next pool."""
        for slot in self.slots:
            slot.end()
        for actor in self.spare:
            end_actor(actor)

    def _keep_idle(self) -> None:
        """Leave the actors, which have no item now, to the next pool where it is to have them."""
        kept = kept_workers()
        if kept is not None:
            idle = [slot.actor for slot in self.slots if slot.actor is not None]
            kept.keep(idle + self.spare, self.options)
            self.spare = []
            for slot in self.slots:
                slot.actor = None

    def _start_spare(self) -> None:
        """Start the actors that a later pool will have work for, once all here have theirs."""
        kept = kept_workers()
        if kept is None or self.spare:
            return
        wanted = min(self.most, kept.wanted) - len(self.slots) - len(kept.actors)
        self.spare = [self._new_actor() for _ in range(wanted)]

    def _hand_out(self) -> None:
        """Give waiting items to free slots, first to those that have an actor."""
        free = [slot for slot in self.slots if slot.stream is None and not slot.given_up]
        for slot in sorted(free, key=lambda slot: slot.actor is None):
            if not self.waiting:
                return
            if slot.actor is None:
                slot.actor = self._kept_actor()
                slot.kept = slot.actor is not None
                slot.actor = slot.actor or self._new_actor()
            item = self.waiting.popleft()
            slot.give(item, self.label(item))

    def _kept_actor(self) -> Any | None:
        """An actor of an earlier pool with the worker of this one; None where none is left."""
        kept = kept_workers()
        actor = None if kept is None else kept.take(self.options)
        if actor is not None:
            actor.begin.remote(*self._arguments)
        return actor

    def _new_actor(self) -> Any:
        return ray.remote(PoolWorker).options(**self.options).remote(*self._arguments)

    @property
    def _arguments(self) -> tuple[Any, ...]:
        # in a list: the worker then fetches the object itself, and can report an error in reading it
        return [self.work], self.hang_seconds, self.report_seconds

    def _next_message(self, slot: _Slot) -> Outcome[Any] | None:
        """Handle the slot's next message; return the item's outcome if the item has ended."""
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
        else:
            slot.stream = None
            return message
        return None

    def _lost(self, slot: _Slot, reason: str) -> Outcome[Any] | None:
        """The slot's actor was lost: end its item, or put it back for another actor."""
        slot.end()
        item = slot.item
        value = self.committed(item)
        if value is not None:
            return Outcome(value)
        if (
            slot.begun is None and slot.kept
        ):  # it was lost while it waited, by no fault of this item
            slot.kept = False
            self.waiting.appendleft(item)
            return None
        if slot.begun is None:
            self._count_failed_start(slot, reason)
        else:
            alarm = HangAlarm(slot.begun.hung, self.hang_seconds)
            if alarm.rang:
                return Outcome(failed=alarm.reason, lost=True)
            alarm.file.unlink(missing_ok=True)
        self.losses[item] += 1
        if self.losses[item] > self.retries:
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


def start_workers(work: Work, placement: Placement, most: int) -> None:
    """Start up to ``most`` actors for the next pool of the running ``workers_kept`` block.

    They make the worker of ``work``, which imports what theirs will need, while the caller prepares it.
    """
    kept, options = kept_workers(), _options(placement)
    assert kept is not None
    reference = ray.put(work)
    actors = [
        ray.remote(PoolWorker).options(**options).remote([reference], None, 1.0)
        for _ in range(min(placement.workers, most))
    ]
    kept.keep(actors, options)


def _options(placement: Placement) -> dict[str, Any]:
    return {**placement.ray_options, "max_restarts": 0, "max_task_retries": 0}


def _reason(error: RayError) -> str:
    """Why the worker ended, from Ray's message without its general advice."""
    text = str(error).strip()
    found = re.search(r"exit detail: (.+?)\.?(?= Some common causes|\n|$)", text)
    line = found[1] if found else (text.splitlines() or [""])[0]
    return f"{type(error).__name__}: {redacted(line)} (killed, crashed, or out of memory)"


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"
