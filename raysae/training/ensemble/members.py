"""A member: one training of an ensemble, with its settings, its state and its result."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from raysae.sae import SAEConfig
from raysae.sae.truth import Truth
from raysae.storage.files import remove_folder
from raysae.training.config import TrainingConfig
from raysae.training.ensemble.stopping import Budget
from raysae.training.rows import IndexedRows, RowSource
from raysae.training.trainer import Trainer

Record = dict[str, Any]


@dataclass(eq=False)
class Member:
    """One SAE to train on ``rows [rows, d_in]`` and evaluate on ``validation [rows, d_in]``."""

    config: SAEConfig
    training: TrainingConfig
    rows: RowSource
    validation: IndexedRows
    seed: int = 0
    truth: Truth | None = None
    """The true atoms and where they fire, where the rows are synthetic."""
    checkpoint: Path | None = None
    """The folder of its checkpoint; None: its state is not saved."""
    budget: Budget | None = None
    """Limit on its training time, which it may share with other members; None: no limit."""
    history: list[Record] = field(default_factory=list, init=False)
    """A record for each evaluation."""
    stopped: str | None = field(default=None, init=False)
    """Why it was stopped before its last step, without an error; None when it was not."""
    failure: Exception | None = field(default=None, init=False)
    """The exception from its training or from reading its rows; None when there was none."""
    _trainer: Trainer | None = field(default=None, init=False, repr=False)
    _released: bool = field(default=False, init=False, repr=False)

    @property
    def begun(self) -> bool:
        """Whether it has a trainer, so that its training has begun."""
        return self._trainer is not None

    @property
    def trainer(self) -> Trainer:
        """Its trainer; only after it has begun."""
        assert self._trainer is not None
        return self._trainer

    @property
    def active(self) -> bool:
        """Whether it has steps left: it neither stopped nor failed."""
        ended = self._released or self.stopped is not None or self.failure is not None
        return not ended and (not self.begun or self.trainer.step < self.trainer.steps)

    @property
    def seconds(self) -> float:
        """Seconds of its training, with the time it waited for rows."""
        return self.trainer.seconds + self.trainer.feed.waited if self.begun else 0.0

    def begin(self, trainer: Trainer, history: list[Record]) -> None:
        """Start with ``trainer``, which has made the evaluations in ``history``."""
        self._trainer, self.history = trainer, history

    def stop(self, reason: str) -> None:
        """Stop it because of ``reason``, unless it has ended already."""
        if self.active:
            self.stopped = reason

    def release(self) -> None:
        """Free the trainer and its memory; the training has ended."""
        self._trainer, self._released = None, True
        self.budget = None  # it refers to this object: a cycle would keep the rows in memory

    def discard_checkpoint(self) -> None:
        """Remove its checkpoint and save no new one; call it when the result is written."""
        if self.checkpoint is not None:
            remove_folder(self.checkpoint)
        self.checkpoint = None
