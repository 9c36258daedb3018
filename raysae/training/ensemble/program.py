"""A packed program: several SAEs of one shape that ``PackedStep`` trains together.

Shapes: N SAEs, U different sources of rows, R rows, B batch, D d_in.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor

from raysae.training.ensemble.clock import step_clock
from raysae.training.ensemble.members import Member
from raysae.training.lost_device import raise_if_lost
from raysae.training.packed import PackedStep
from raysae.training.rows import Rows, StreamPosition
from raysae.training.trainer import NonFiniteLossError

if TYPE_CHECKING:
    from raysae.training.ensemble.engine import Ensemble

Result = TypeVar("Result")


class PackedProgram:
    """Trains ``members`` of one shape, which are at the same step.

    Their weights, moments and counters are views of the step's tensors, so each can be saved alone.
    A loss that is not finite is noticed at the next evaluation or checkpoint; the member's SAE is
    then that of the step before it.
    """

    def __init__(self, members: list[Member], ensemble: "Ensemble"):
        self.members, self.ensemble = members, ensemble
        self.position = members[0].trainer.stream.position
        self.clock = step_clock(ensemble.device)
        self._trained = set[Member]()

    def _begin(self) -> Iterator[tuple[Tensor, StreamPosition]]:
        """Put the members side by side; returns their batches."""
        trainers = [member.trainer for member in self.members]
        self.step = PackedStep(
            [trainer.model for trainer in trainers], [member.training for member in self.members],
            [trainer.aux_window for trainer in trainers],
            [trainer.tokens_since_fired_F for trainer in trainers], trainers[0].steps,
            adam_states=[trainer.adam_state for trainer in trainers], taken=trainers[0].step,
        )  # fmt: skip
        self.rows = _PackedRows(self.members)
        self._trained = set(self.members)
        return self.rows.placed(self.position)

    @property
    def active(self) -> list[Member]:
        """The members that have steps left."""
        return [member for member in self.members if member.active]

    def rounds(self) -> Iterator[None]:
        """Train to the end; yield after each evaluation."""
        batches = self._guarded(self._begin)
        while batches is not None and (active := self.active):
            if len(active) < len(self._trained):
                self._release_ended()
            taken = self._guarded(partial(self._take, active, batches))
            if taken is None:
                break
            evaluation, rows = taken
            for member in active if evaluation else self._limited(active):
                self._after_step(member, evaluation)
            self.ensemble.after_batch(len(active) * rows)
            if not self.active:
                self.clock.settle()
                self._release()
            if evaluation:
                yield
        yield

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
        for number, member in enumerate(self.members):
            if member not in self._trained or member.failure or member.stopped:
                continue
            trainer = member.trainer
            trainer.loss, trainer.stream.position = losses[number], self.position
            for state in trainer.adam_state.values():
                state["step"] = torch.tensor(float(trainer.step), device=trainer.device)
            if failed[number] >= 0:
                trainer.step = failed[number]
                hint = trainer.where_and_what_to_do()
                self.ensemble.fail(
                    member, NonFiniteLossError(f"loss or gradient not finite {hint}")
                )

    def _take(
        self, active: list[Member], batches: Iterator[tuple[Tensor, StreamPosition]]
    ) -> tuple[bool, int]:
        """Train on the next batch; returns whether an evaluation follows, and rows per member."""
        self.clock.start()
        x_NBD, self.position = next(batches)
        self.step.take(x_NBD)
        for member in active:
            member.trainer.count(x_NBD.shape[1])
        self.clock.stop(active)
        evaluation = active[0].trainer.at_evaluation()
        if evaluation:
            self.settle()
        return evaluation, x_NBD.shape[1]

    def _release_ended(self) -> None:
        """Stop changing the members that have ended."""
        for number, member in enumerate(self.members):
            if member in self._trained and not member.active:
                self.step.release(number)
                self._trained.remove(member)

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
            member.trainer.adam_state.clear()
        vars(self).pop("step", None)
        vars(self).pop("rows", None)


class _PackedRows:
    """Every member's batches side by side; rows that members share are stored once."""

    def __init__(self, members: list[Member]):
        self.members = members
        sources = {id(member.rows): member.trainer.train for member in members}
        blocks = [_block(rows) for rows in sources.values()]
        if len({block.device for block in blocks}) > 1:  # some did not fit on the device
            blocks = [block.cpu() for block in blocks]
        self.rows_URD = blocks[0][None] if len(blocks) == 1 else torch.stack(blocks)
        device, places = self.rows_URD.device, list(sources)
        self.source_N1 = torch.tensor([[places.index(id(m.rows))] for m in members], device=device)
        self.mean_ND = torch.stack([m.trainer.mean_D for m in members])
        self.scale_N = self.mean_ND.new_tensor([m.trainer.scale for m in members])

    def placed(self, position: StreamPosition) -> Iterator[tuple[Tensor, StreamPosition]]:
        """Batches ``[saes, batch, d_in]``, centred and scaled for each SAE, in float32, from
        ``position`` on, each with the position after it; the last batch of an epoch may be smaller."""
        training, rows = self.members[0].training, self.rows_URD.shape[1]
        taken = position.rows
        for epoch in range(position.epoch, training.passes(rows)):
            order_NR = torch.stack([self._order(member, epoch, taken) for member in self.members])
            for index_NB in order_NR.to(self.rows_URD.device).split(training.batch_size, dim=1):
                taken += index_NB.shape[1]
                x_NBD = self.rows_URD[self.source_N1, index_NB].to(self.mean_ND).float()
                following = StreamPosition(epoch + 1) if taken == rows else None
                inputs_NBD = x_NBD.sub_(self.mean_ND[:, None]).mul_(self.scale_N[:, None, None])
                yield inputs_NBD, following or StreamPosition(epoch, taken)
            taken = 0

    def _order(self, member: Member, epoch: int, taken: int) -> Tensor:
        """The epoch's row numbers after the first ``taken``, as ``RowSource.epoch`` orders them."""
        every = member.rows.windows(member.seed, epoch, member.training.shuffle_rows, taken)
        return torch.cat([window.start + window.order for window in every])


def _block(rows: object) -> Tensor:
    """All rows ``[rows, d_in]`` in one tensor; not copied when they are one block already."""
    assert isinstance(rows, Rows)
    return rows.blocks[0] if len(rows.blocks) == 1 else rows.read(0, len(rows))
