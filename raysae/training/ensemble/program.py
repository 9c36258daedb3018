"""A packed program: several SAEs of one shape that ``PackedStep`` trains together."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import torch

from raysae.training.ensemble.clock import step_clock
from raysae.training.ensemble.members import Member
from raysae.training.ensemble.packed_rows import Batches, FedRows, HandedRows, PackedRows, rows_of
from raysae.training.lost_device import raise_if_lost
from raysae.training.memory import release_cached
from raysae.training.packed import PackedStep
from raysae.training.rows import StreamPosition
from raysae.training.trainer import NonFiniteLossError

if TYPE_CHECKING:
    from raysae.training.ensemble.engine import Ensemble

Result = TypeVar("Result")
PackRows = PackedRows | FedRows | HandedRows


class PackedProgram:
    """Trains ``members`` of one shape, which are at the same step.

    Their weights, moments and counters are views of the step's tensors, so each can be saved alone.
    A member that has ended leaves, and the tensors are those of the others from then on. A loss that is
    not finite is noticed at the next evaluation or checkpoint; the member's SAE is then that of the step
    before it. ``rows_of`` gives the members' batches.
    """

    def __init__(
        self, members: list[Member], ensemble: "Ensemble",
        rows_of: Callable[[list[Member]], PackRows] = rows_of,
    ):  # fmt: skip
        self.members, self.ensemble, self._rows_of = members, ensemble, rows_of
        self.position: StreamPosition | None = members[0].trainer.stream.position
        self.clock = step_clock(ensemble.device)
        self._trained: list[Member] = []
        """Those whose tensors the step holds, in its order."""

    def _begin(self) -> Batches:
        """Put the members side by side; returns their batches."""
        self._trained = list(self.members)
        self._hold()
        self.rows = self._rows_of(self.members)
        return self.rows.placed(self.position)

    def _hold(self) -> None:
        """Make the step of the members that are trained."""
        trainers = [member.trainer for member in self._trained]
        self.step = PackedStep(
            [trainer.model for trainer in trainers], [member.training for member in self._trained],
            [trainer.aux_window for trainer in trainers],
            [trainer.tokens_since_fired_F for trainer in trainers], trainers[0].steps,
            adam_states=[trainer.adam_state for trainer in trainers], taken=trainers[0].step,
        )  # fmt: skip
        losses = [trainer.loss for trainer in trainers]
        self.step.loss_N.copy_(torch.tensor(losses, device=self.step.loss_N.device))
        for trainer in trainers:
            trainer.trained_by = "pack"

    @property
    def active(self) -> list[Member]:
        """The members that have steps left."""
        return [member for member in self.members if member.active]

    def rounds(self) -> Iterator[None]:
        """Train to the end; yield after each evaluation."""
        for evaluated, tokens in self.steps():
            self.ensemble.after_batch(tokens)
            if evaluated:
                yield
        yield

    def steps(self) -> Iterator[tuple[bool, int]]:
        """Train to the end; yield after each batch whether members were evaluated at it, and its training
        tokens."""
        batches = self._guarded(self._begin)
        while batches is not None and (active := self.active):
            if len(active) < len(self._trained):
                batches = self._guarded(self._shrunk)
                continue
            taken = self._guarded(partial(self._take, active, batches))
            if taken is None:
                break
            evaluation, rows = taken
            for member in active if evaluation else self._limited(active):
                self._after_step(member, evaluation)
            if not self.active:
                self.clock.settle()
                self._release()
            yield evaluation, len(active) * rows

    def _guarded(self, work: Callable[[], Result]) -> Result | None:
        """What ``work`` returns; None where it raises, as without memory: then all members fail."""
        try:
            return work()
        except Exception as error:
            raise_if_lost(error)
            self._release()
            for member in self.active:
                self.ensemble.fail(member, error)
            return None

    def settle(self) -> None:
        """Copy the program's state to the trainers; members whose loss is not finite fail."""
        if not self._trained:
            return
        self.clock.settle()
        losses, failed = self.step.loss_N.tolist(), self.step.failed_N.tolist()
        for number, member in enumerate(self._trained):
            if member.failure or member.stopped:
                continue
            trainer = member.trainer
            trainer.loss = losses[number]
            if self.position is not None:
                trainer.stream.position = self.position
            for state in trainer.adam_state.values():
                state["step"] = torch.tensor(float(trainer.step), device=trainer.device)
            if failed[number] >= 0:
                trainer.step = failed[number]
                hint = trainer.where_and_what_to_do()
                self.ensemble.fail(
                    member, NonFiniteLossError(f"loss or gradient not finite {hint}")
                )

    def _take(self, active: list[Member], batches: Batches) -> tuple[bool, int]:
        """Train on the next batch; returns whether an evaluation follows, and rows per member.

        Without a batch, as the rows ended early, this step is the last one.
        """
        if not self.rows.waits:
            self.clock.start()
        following = next(batches, None)
        if self.rows.waits:
            self.clock.start()
        if following is None:
            for member in active:
                member.trainer.steps = member.trainer.step
            self.settle()
            return True, 0
        x_NBD, self.position = following
        self.step.take(x_NBD)
        for member in active:
            member.trainer.count(x_NBD.shape[1])
        self.clock.stop(active)
        evaluation = active[0].trainer.at_evaluation()
        if evaluation:
            self.settle()
        return evaluation, x_NBD.shape[1]

    def _shrunk(self) -> Batches:
        """Let go of the members that have ended; returns the batches of the others.

        The tensors of all are freed one after another, as those of the others are made.
        """
        self.settle()  # who is not finite ends now
        left = [number for number, member in enumerate(self._trained) if member.active]
        del self.step
        for member in self._trained:
            if not member.active and member.begun:
                member.trainer.adam_state.clear()
                PackedStep.part(member.trainer.model, member.trainer.tokens_since_fired_F)
        self._trained = [self._trained[number] for number in left]
        if not self._trained:
            self._release()
            return iter(())
        release_cached(self.ensemble.device)
        self._hold()
        self.rows.keep(left)
        return self.rows.placed(self.position)

    def _limited(self, active: list[Member]) -> list[Member]:
        """The members with a time limit, which may stop after any step."""
        return [m for m in active if m.budget is not None and m.budget.seconds is not None]

    def _after_step(self, member: Member, evaluation: bool) -> None:
        if member.failure is not None or member.stopped is not None:
            return
        record = member.trainer.record() if evaluation else None
        if record is not None:
            self.ensemble.record(member, record)
        self.ensemble.stop_by_rule(member, record)

    def _release(self) -> None:
        """Free the working memory; only the members' weights remain."""
        self._trained.clear()
        for member in self.members:
            if member.begun:
                member.trainer.adam_state.clear()
        vars(self).pop("step", None)
        vars(self).pop("rows", None)
