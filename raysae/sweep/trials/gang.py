"""Trials that one worker trains together, on the same batches."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from raysae.sweep.trials.members import Members
from raysae.training import TrainingConfig
from raysae.training.ensemble import Ensemble, Member, StatisticsCache, batch_settings

GANG = "gang"
"""Where a Tune config and a Tune result have their trials."""


def shared_settings(training: TrainingConfig) -> tuple[object, ...]:
    """What trials of one gang have in common: the batches they take, and when they are evaluated."""
    return *batch_settings(training), training.evaluations


class Gang:
    """Trials with the same sites, seeds and ``shared_settings``, which go through their evaluations
    together.

    Each ends to the bit as it does alone, and one that fails leaves the others alone. ``alive`` is called
    after every batch; checkpoints are saved every ``seconds``, and ``send`` gets each trial's folder of
    them.
    """

    def __init__(
        self,
        trials: Sequence[Members],
        seconds: float,
        alive: Callable[[], None] = lambda: None,
        device: str = "cpu",
        statistics: StatisticsCache | None = None,
        send: Callable[[Path], object] = lambda checkpoints: None,
    ):
        self.trials, self._send = list(trials), send
        self._trial_of = {member: trial for trial in trials for member in trial.members.values()}
        self._ensemble = Ensemble(
            list(self._trial_of), device, statistics=statistics, checkpoint_seconds=seconds,
            after_batch=lambda tokens: alive(), on_saved=self._push, on_end=self._end_trial,
        )  # fmt: skip

    def rounds(self) -> Iterator[None]:
        """Train to the end, yielding after each evaluation that all have passed.

        What a trial's training raises is its ``failure``.
        """
        for _ in self._ensemble.rounds():
            yield

    def _end_trial(self, member: Member) -> None:
        """A trial of which one training ends early has no figures, so the others end, too."""
        for other in self._trial_of[member].members.values():
            other.stop("another training of this trial ended early")

    def _push(self, saved: Sequence[Member]) -> None:
        for trial in dict.fromkeys(self._trial_of[member] for member in saved):
            self._send(trial.checkpoints)
