"""A member: one training of an ensemble, before, while and after it runs."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from raysae.sae import SAEConfig
from raysae.storage.files import remove_folder
from raysae.training.config import TrainingConfig
from raysae.training.ensemble.stopping import Budget
from raysae.training.rows import IndexedRows, RowSource
from raysae.training.trainer import Trainer

Record = dict[str, Any]


@dataclass(eq=False)
class Member:
    """One SAE to be trained on ``rows [rows, d_in]`` and measured on ``validation [rows, d_in]``."""

    config: SAEConfig
    training: TrainingConfig
    rows: RowSource
    validation: IndexedRows
    seed: int = 0
    truth: Tensor | None = None
    """The true atoms ``[atoms, d_in]``, where the rows are synthetic."""
    checkpoint: Path | None = None
    """The folder for its state in mid-training; None: its state is not saved."""
    budget: Budget | None = None
    """Seconds that it may take, perhaps together with other members."""
    history: list[Record] = field(default_factory=list, init=False)
    """A record for each evaluation."""
    stopped: str | None = field(default=None, init=False)
    """Why it ended before its last step, though nothing went wrong."""
    failure: Exception | None = field(default=None, init=False)
    """What its training, or the reading of its rows, raised."""
    _trainer: Trainer | None = field(default=None, init=False, repr=False)

    @property
    def begun(self) -> bool:
        """Whether it has a trainer."""
        return self._trainer is not None

    @property
    def trainer(self) -> Trainer:
        """Its trainer, once it has begun."""
        assert self._trainer is not None
        return self._trainer

    @property
    def active(self) -> bool:
        """Whether there are steps to come."""
        left_early = self.stopped is not None or self.failure is not None
        return not left_early and (not self.begun or self.trainer.step < self.trainer.steps)

    @property
    def seconds(self) -> float:
        """What it has taken, with the time in which it waited for rows."""
        return self.trainer.seconds + self.trainer.feed.waited if self.begun else 0.0

    def begin(self, trainer: Trainer, history: list[Record]) -> None:
        """Train with ``trainer``, which has come as far as ``history`` says."""
        self._trainer, self.history = trainer, history

    def stop(self, reason: str) -> None:
        """End it before its last step, if it has not ended yet."""
        if self.active:
            self.stopped = reason

    def release(self) -> None:
        """Give up the trainer and its memory."""
        self._trainer = None

    def discard_checkpoint(self) -> None:
        """Remove its checkpoint and save no other: its result has been written."""
        if self.checkpoint is not None:
            remove_folder(self.checkpoint)
        self.checkpoint = None
