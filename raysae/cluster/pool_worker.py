"""The worker of the pool: it makes its worker once, then does one item after another.

On a GPU it is an actor. On CPUs it is held by a process that Ray's tasks run in, and that does other
work later: to start a process and import torch in it takes longer than many items do.
"""

import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import ray

from raysae.cluster.alarm import HangAlarm
from raysae.cluster.later import Later, finished
from raysae.cluster.worker import end_if_lost
from raysae.errors import UserError
from raysae.redaction import traceback_of
from raysae.remembered import forget_all
from raysae.storage.trouble import reason_in_words

Value = TypeVar("Value")

IDLE_SECONDS = 5.0
"""Seconds after which a process without an item lets go of its worker, and of its memory."""


class Worker(Protocol):
    """Does the items. It is made in the actor's process."""

    def do(self, item: Any, alive: Callable[[], None]) -> Any:
        """Do one item, commit it, and return a value that is small enough for a message.

        Call ``alive`` after every step. ``do`` may be a generator: it yields progress reports and
        returns the value. It raises UserError for an item that will fail every time. It may return
        ``Later`` instead of the value, while a thread of the worker commits the item: the next item is
        then begun. Only one item may be committed so; ``do`` waits for it before it hands over another.
        """

    def hung_file(self, item: Any) -> Path:
        """The file that receives the stack if the item hangs."""


@dataclass(frozen=True)
class Work:
    """How to make a worker: ``make(*arguments)``. Each actor receives it once."""

    make: Callable[..., Worker]
    arguments: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Outcome(Generic[Value]):
    """How an item ended: with a value, or with the reason of its failure."""

    value: Value | None = None
    failed: str | None = None
    """The reason in words; None when the item is done."""
    refused: bool = False
    """Whether a UserError ended it: another attempt would fail the same way."""
    lost: bool = False
    """Whether its worker's process ended or hung: another attempt may succeed."""
    trace: str = ""
    """The traceback of an exception other than UserError."""


@dataclass(frozen=True)
class HandedOver:
    """The item is being committed by a thread of an actor; its outcome comes with a later stream."""


@dataclass(frozen=True)
class Earlier:
    """How the item ended that was handed over before."""

    outcome: Outcome[Any]


@dataclass(frozen=True)
class Begun:
    """The actor has its worker and begins an item."""

    hung: Path


@dataclass(frozen=True)
class Progress:
    """A report during an item."""

    report: Any


@dataclass(frozen=True)
class Broken:
    """The actor has no worker, because its constructor failed."""

    outcome: Outcome[Any] = field(default_factory=Outcome)


@dataclass(frozen=True)
class Lost:
    """The process can no longer use its GPU, and ends; another one can do the item."""

    reason: str


def failure_of(error: Exception) -> Outcome[Any]:
    """The outcome of an item, or of a constructor, that raised ``error``."""
    if isinstance(error, UserError):
        return Outcome(failed=str(error), refused=True)
    return Outcome(failed=reason_in_words(error), trace=traceback_of(error))


def _told(failed: Outcome[Any]) -> Outcome[Any]:
    """A failure, once it is in the worker's log, which Ray's dashboard shows."""
    print(f"{failed.trace}failed: {failed.failed}", file=sys.stderr, flush=True)
    return failed


class PoolWorker:
    """Answers ``do(item)`` with a stream of messages.

    The stream is ``Begun``, some ``Progress``, then ``Outcome`` or ``HandedOver``, or ``Lost``, after
    which the process ends; or ``Broken`` alone when there is no worker. Before the last message comes
    ``Earlier`` when an item was handed over before; ``settle()`` asks for it alone. ``work`` is a list
    with one reference to a ``Work``. An item may make no step for up to ``hang_seconds``;
    ``report_seconds`` is the least time between two progress reports.
    """

    def __init__(
        self, work: list[Any], hang_seconds: float | None, report_seconds: float,
        beside: bool = False,
    ):  # fmt: skip
        self.hang_seconds, self.report_seconds = hang_seconds, report_seconds
        self.beside = beside
        """Whether it does the next item while one is committed; else it waits for that."""
        self.broken: Broken | None = None
        self.earlier: tuple[Any, Later[Any]] | None = None
        """The item that was handed over, and its value."""
        try:
            work_here: Work = ray.get(work[0])
            self.worker = work_here.make(*work_here.arguments)
        except Exception as error:  # Ray would wrap it in a long message of its own
            end_if_lost(error)
            self.broken = Broken(failure_of(error))

    @ray.method(num_returns="streaming")
    def do(self, item: Any) -> Iterator[Any]:
        """Do one item and stream the messages about it. Failures are messages, never exceptions."""
        if self.broken is not None:
            yield self.broken
            return
        alarm = HangAlarm(self.worker.hung_file(item), self.hang_seconds)
        yield Begun(alarm.file)
        lost: Exception | None = None
        try:
            last = yield from self._done(item, alarm)
        except Exception as error:  # of a lost GPU
            lost = error
            last = [Lost(reason_in_words(error))]
            if self.earlier is not None:
                last.insert(0, self._settled())
        for message in last:  # noqa: UP028  (Ray sends to the generator, which a list does not take)
            yield message
        if lost is not None:
            end_if_lost(lost)

    @ray.method(num_returns="streaming")
    def settle(self) -> Iterator[Begun | Earlier]:
        """Wait for the item that was handed over, and tell how it ended."""
        assert self.earlier is not None
        alarm = HangAlarm(self.worker.hung_file(self.earlier[0]), self.hang_seconds)
        yield Begun(alarm.file)
        alarm.set()
        try:
            ended = self._settled()
        finally:
            alarm.cancel()
        yield ended

    def _done(self, item: Any, alarm: HangAlarm) -> Generator[Progress, None, list[Any]]:
        """Do the item; the messages with which its stream ends."""
        try:
            alarm.set()
            ended = yield from self._outcome(item, alarm)
            last: list[Any] = [] if self.earlier is None else [self._settled()]
            if isinstance(ended.value, Later):
                self.earlier = item, ended.value
                return [*last, HandedOver()]
            return [*last, ended]
        finally:
            alarm.cancel()

    def _outcome(self, item: Any, alarm: HangAlarm) -> Generator[Progress, None, Outcome[Any]]:
        try:
            result = self.worker.do(item, alarm.step)
            if isinstance(result, Generator):
                result = yield from self._reported(result)
            return Outcome(result if self.beside else finished(result))
        except Exception as error:  # the actor continues with other items
            _raise_if_lost(error)
            return _told(failure_of(error))

    def _settled(self) -> Earlier:
        assert self.earlier is not None
        (_, later), self.earlier = self.earlier, None
        try:
            return Earlier(Outcome(later.result()))
        except Exception as error:
            return Earlier(_told(failure_of(error)))

    def _reported(self, work: Generator[Any, None, Any]) -> Generator[Progress, None, Any]:
        """Pass reports on, at most one every ``report_seconds``."""
        last_report = time.monotonic()
        while True:
            try:
                report = next(work)
            except StopIteration as end:
                return end.value
            if time.monotonic() - last_report >= self.report_seconds:
                last_report = time.monotonic()
                yield Progress(report)


class _Held:
    """The worker that this process holds between its items."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._work: Any = None
        self._worker: PoolWorker | None = None
        self._busy = 0

    def worker(self, work: list[Any], hang_seconds: float | None, report: float) -> PoolWorker:
        """The worker of ``work``, made anew where another was held; it is busy until ``rest``."""
        with self._lock:
            self._busy += 1
            if self._worker is None or self._work != work[0]:
                self._worker = None  # its memory may go
                forget_all()
                self._work, self._worker = work[0], PoolWorker(work, hang_seconds, report)
            return self._worker

    def rest(self) -> None:
        """The item has ended: let go of a worker that could not be made, and later of any other."""
        with self._lock:
            if self._worker is not None and self._worker.broken is not None:
                self._worker = None
            self._busy += 1
            later = threading.Timer(IDLE_SECONDS, self._let_go, (self._busy,))
            later.daemon = True
            later.start()

    def _let_go(self, since: int) -> None:
        with self._lock:
            if self._busy == since:
                self._work = self._worker = None
                forget_all()


_held = _Held()


def do_here(
    work: list[Any], hang_seconds: float | None, report_seconds: float, item: Any
) -> Iterator[Begun | Progress | Broken | Lost | Outcome[Any]]:
    """Do one item of ``work`` in this process, which keeps its worker for the next; the messages are
    those of ``PoolWorker.do``."""
    worker = _held.worker(work, hang_seconds, report_seconds)
    try:
        yield from worker.do(item)
    finally:
        del worker
        _held.rest()


def _raise_if_lost(error: Exception) -> None:
    from raysae.training.lost_device import (
        raise_if_lost,  # imports torch, which the driver need not
    )

    raise_if_lost(error)
