"""The actor of the pool: it makes its worker once and does one item after another."""

import time
import traceback
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import ray

from raysae.cluster.alarm import HangAlarm
from raysae.errors import UserError

Value = TypeVar("Value")


class Worker(Protocol):
    """What does the items. It is made in the actor's process."""

    def do(self, item: Any, alive: Callable[[], None]) -> Any:
        """Do one item and commit it; what comes of it, small enough for a message.

        ``alive`` is to be called after every step. A generator's yields are reports of progress; what
        it returns is the outcome.
        """

    def hung_file(self, item: Any) -> Path:
        """Where the stack goes when the item hangs."""


@dataclass(frozen=True)
class Work:
    """How to make a worker: ``make(*arguments)``. It is sent to each actor once."""

    make: Callable[..., Worker]
    arguments: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Outcome(Generic[Value]):
    """How an item ended: with a value, or failed, and why."""

    value: Value | None = None
    failed: str | None = None
    """The reason in words."""
    refused: bool = False
    """Whether it failed by a UserError: as it stands, it will always fail."""
    trace: str = ""
    """The traceback of an exception that was no UserError."""


@dataclass(frozen=True)
class Begun:
    """The actor has its worker and begins an item."""

    hung: Path


@dataclass(frozen=True)
class Progress:
    """A report in the midst of an item."""

    report: Any


@dataclass(frozen=True)
class Broken:
    """The actor has no worker: its constructor failed."""

    outcome: Outcome[Any] = field(default_factory=Outcome)


def failure_of(error: Exception) -> Outcome[Any]:
    """The outcome of an item, or of a constructor, that raised ``error``."""
    if isinstance(error, UserError):
        return Outcome(failed=str(error), refused=True)
    text = str(error).strip()
    reason = f"{type(error).__name__}: {text.splitlines()[0]}" if text else type(error).__name__
    return Outcome(failed=reason, trace="".join(traceback.format_exception(error)))


class PoolWorker:
    """Answers to ``do(item)`` by a stream: ``Begun``, now and then ``Progress``, and an ``Outcome`` at
    the end; or by ``Broken``. ``work`` is a list of one reference to a ``Work``."""

    def __init__(self, work: list[Any], hang_seconds: float | None, report_seconds: float):
        self.hang_seconds, self.report_seconds = hang_seconds, report_seconds
        self.broken: Broken | None = None
        try:
            work_here: Work = ray.get(work[0])
            self.worker = work_here.make(*work_here.arguments)
        except Exception as error:  # Ray would hide it in a long message of its own
            self.broken = Broken(failure_of(error))

    @ray.method(num_returns="streaming")
    def do(self, item: Any) -> Iterator[Begun | Progress | Broken | Outcome[Any]]:
        if self.broken is not None:
            yield self.broken
            return
        alarm = HangAlarm(self.worker.hung_file(item), self.hang_seconds)
        yield Begun(alarm.file)
        yield (yield from self._done(item, alarm))

    def _done(self, item: Any, alarm: HangAlarm) -> Generator[Progress, None, Outcome[Any]]:
        try:
            alarm.set()
            result = self.worker.do(item, alarm.step)
            if isinstance(result, Generator):
                result = yield from self._reported(result)
            return Outcome(result)
        except Exception as error:  # the actor serves on
            return failure_of(error)
        finally:
            alarm.cancel()

    def _reported(self, work: Generator[Any, None, Any]) -> Generator[Progress, None, Any]:
        """Pass reports on, but not more often than one in ``report_seconds``."""
        told = time.monotonic()
        while True:
            try:
                report = next(work)
            except StopIteration as end:
                return end.value
            if time.monotonic() - told >= self.report_seconds:
                told = time.monotonic()
                yield Progress(report)
