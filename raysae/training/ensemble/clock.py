"""How long the steps of a packed program take: on a GPU by its own clock, as the host runs ahead."""

import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import torch

from raysae.training.ensemble.members import Member

MOST_AHEAD, LIMITED_AHEAD = 32, 2
"""The host is at most so many steps ahead of the device; the second where members have a time limit."""


class StepClock:
    """Adds the time of each step to the trainers of the members that it trained, in equal parts."""

    def start(self) -> None:
        """A step begins."""
        self._started = time.perf_counter()

    def stop(self, members: Sequence[Member]) -> None:
        """The step has ended, or the host has launched all of it; it trained ``members``."""
        _share(time.perf_counter() - self._started, members)

    def settle(self) -> None:
        """Count all steps so far; waits for the device."""


class DeviceClock(StepClock):
    """Takes the time between two events on the device; ``recorded`` records one there."""

    def __init__(self, recorded: Callable[[], Any]):
        self.recorded = recorded
        self._first: Any = None
        self._steps: deque[tuple[Any, Any, list[Member]]] = deque()

    def start(self) -> None:
        """See ``StepClock.start``."""
        self._first = self.recorded()

    def stop(self, members: Sequence[Member]) -> None:
        """See ``StepClock.stop``; the steps that the device has done are counted."""
        self._steps.append((self._first, self.recorded(), list(members)))
        limited = any(one.budget is not None and one.budget.seconds is not None for one in members)
        ahead = LIMITED_AHEAD if limited else MOST_AHEAD
        while self._steps and (len(self._steps) > ahead or self._steps[0][1].query()):
            self._count()

    def settle(self) -> None:
        """See ``StepClock.settle``."""
        while self._steps:
            self._count()

    def _count(self) -> None:
        started, ended, members = self._steps.popleft()
        ended.synchronize()
        _share(started.elapsed_time(ended) / 1000, members)


def step_clock(device: str) -> StepClock:
    """The clock of a program on ``device``."""
    if torch.device(device).type != "cuda":
        return StepClock()
    return DeviceClock(
        lambda: torch.cuda.current_stream(device).record_event(torch.cuda.Event(enable_timing=True))
    )


def _share(seconds: float, members: Sequence[Member]) -> None:
    for member in members:
        if member.begun:  # a member that was released took its time with it
            member.trainer.seconds += seconds / len(members)
