"""Trials that one worker trains together, on the same batches."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from raysae.records.members import Members
from raysae.training import TrainingConfig
from raysae.training.ensemble import Ensemble, Member, StatisticsCache, batch_settings

GANG = "gang"
"""The key of a Tune config, and of a Tune result, that holds the gang's trials."""


def shared_settings(training: TrainingConfig) -> tuple[object, ...]:
    """What the trials of a gang must share: the batches they train on, and when they are evaluated."""
    return *batch_settings(training), training.evaluations


class Gang:
    """Trials with the same sites, seeds and ``shared_settings``, evaluated together.

    Each trial's result equals, to the bit, that of the trial trained alone. A trial that fails does not
    affect the others. ``alive`` is called after every batch. Checkpoints are saved every ``seconds``;
    ``send`` is then called with the folder of each trial's checkpoints.
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
        """Train to the end; yields after each evaluation that all trials have passed.

        An error of a trial's training is not raised: it becomes the trial's ``failure``.
        """
        for _ in self._ensemble.rounds():
            yield

    def _end_trial(self, member: Member) -> None:
        """End the other trainings of a member's trial: without one of them it has no figures."""
        self._trial_of[member].end_with(member)

    def _push(self, saved: Sequence[Member]) -> None:
        for trial in dict.fromkeys(self._trial_of[member] for member in saved):
            self._send(trial.checkpoints)
