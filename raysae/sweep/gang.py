"""Trials that are trained together: those that take the same batches share the reading of them.

Shapes: B batch, D d_in.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress

from raysae.errors import UserError
from raysae.sweep.members import Key, Members
from raysae.training import TrainingConfig

GANG = "gang"
"""Where a Tune config and a Tune result have their trials."""


def takes(training: TrainingConfig) -> tuple[object, ...]:
    """What trials of one gang have in common: which batches they take, and when they are measured."""
    return (
        training.epochs, training.tokens, training.batch_size, training.shuffle_rows,
        training.evaluations,
    )  # fmt: skip


class Gang:
    """Trials with the same sites, seeds and ``takes``, which go through their evaluations together.

    Each ends to the bit as it does alone, and one that comes to grief leaves the others alone.
    ``alive`` is called after every step; where they stand is kept on disk every ``seconds``.
    """

    def __init__(
        self, trials: Sequence[Members], seconds: float, alive: Callable[[], None] = lambda: None
    ):
        self.trials, self.seconds, self.alive = list(trials), seconds, alive
        self._saved = time.monotonic()

    @property
    def going(self) -> list[Members]:
        """Those that have neither ended nor failed."""
        return [members for members in self.trials if members.going]

    def rounds(self) -> Iterator[None]:
        """Train to the end, yielding after each evaluation that all have passed.

        Raises what the reading raises; what a trial's training raises is its ``failure``.
        """
        lanes = self._lanes()
        passed = min((members.passed for members in self.going), default=0)
        while self.going:
            passed += 1
            for (key, _), (trials, rounds) in lanes.items():
                behind = [m for m in trials if m.sound and len(m.histories[key]) < passed]
                if behind:
                    next(rounds, None)
            yield

    def _lanes(self) -> dict[tuple[Key, int], tuple[list[Members], Iterator[None]]]:
        """The trainings that can share batches: of one site and seed, and, where they were cut off
        before, come equally far."""
        lanes: dict[tuple[Key, int], list[Members]] = {}
        for members in self.going:
            for key, trainer in members.trainers.items():
                lanes.setdefault((key, trainer.step), []).append(members)
        return {at: (trials, self._lane(at[0], trials)) for at, trials in lanes.items()}

    def _lane(self, key: Key, trials: list[Members]) -> Iterator[None]:
        first = trials[0].trainers[key]
        for members in trials[1:]:
            members.trainers[key].follow(first)
        if first.step == first.steps:
            return
        for batch_BD in first.feed:
            measured = [members.take(key, batch_BD) for members in trials if members.sound]
            self._after_step()
            if any(measured):
                yield
            left = [members for members in trials if members.sound]
            if not left or left[0].trainers[key].step == first.steps:
                return
        for members in trials:
            members.end(key)
        yield

    def _after_step(self) -> None:
        self.alive()
        if time.monotonic() - self._saved >= self.seconds:
            for members in self.going:
                with suppress(OSError, UserError):  # a full disk: what was kept before stays good
                    members.keep()
            self._saved = time.monotonic()
