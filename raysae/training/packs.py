"""Members of ``fit_many`` of one shape, trained in lockstep by ``PackedStep``.

Shapes: N SAEs, U different sources of rows, R rows, B batch, D d_in.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from raysae.training.memory import free_bytes, training_bytes
from raysae.training.packed import PackedStep, can_pack
from raysae.training.rows import Rows, windows
from raysae.training.trainer import Trainer

if TYPE_CHECKING:
    from raysae.training.many import Member, Session


def packs_of(members: "list[Member]", device: str) -> "tuple[list[list[Member]], list[Member]]":
    """The members that can be packed, by what must be alike, as many together as fit; and the rest."""
    alike: dict[tuple[Any, ...], list[Member]] = {}
    rest = []
    for member in members:
        key = _shape(member)
        if key is None:
            rest.append(member)
        else:
            alike.setdefault(key, []).append(member)
    packs = []
    for group in alike.values():
        size = _how_many_fit(group[0], device)
        packs += [group[start : start + size] for start in range(0, len(group), size)]
    return packs, rest


def _shape(member: "Member") -> tuple[Any, ...] | None:
    """What the members of a pack have in common; None when it cannot be packed."""
    rows, training, config = member.rows, member.training, member.config
    if not isinstance(rows, Rows) or not can_pack(config):
        return None
    same = (
        config.variant, config.d_sae, getattr(config, "aux_coefficient", None),
        getattr(config, "threshold_rate", None),
    )  # fmt: skip
    of_training = (
        training.epochs, training.tokens, training.batch_size, training.precision,
        training.gradient_clip, training.evaluations, training.warm_up, training.decay,
    )  # fmt: skip
    return rows.d_in, len(rows), *same, *of_training


def _how_many_fit(member: "Member", device: str) -> int:
    free = free_bytes(device)
    # gradients and Adam's temporaries come on top of what one compiled training holds
    each = 2 * training_bytes(member.rows.d_in, member.config.d_sae, member.training)
    return max(1, free // each) if free is not None else 1_000_000


def train_pack(members: "list[Member]", session: "Session") -> None:
    """Train all members to their ends."""
    trainers = [session.prepared(member) for member in members]
    step = PackedStep(
        [trainer.model for trainer in trainers], [member.training for member in members],
        [trainer.aux_window for trainer in trainers],
        [trainer.quiet_tokens_F for trainer in trainers], trainers[0].steps,
    )  # fmt: skip
    rows = _PackedRows(members, trainers)
    for x_NBD in rows.batches():
        step.take(x_NBD)
        for member, trainer in zip(members, trainers, strict=True):
            if member.stopped is None:
                trainer.count(x_NBD.shape[1])
                session.advance(x_NBD.shape[1])
        if trainers[0].at_evaluation():
            _evaluate(members, trainers, step, session)
            if all(member.stopped is not None for member in members):
                return
        if trainers[0].step == trainers[0].steps:
            return


def _evaluate(
    members: "list[Member]", trainers: list[Trainer], step: PackedStep, session: "Session"
) -> None:
    losses, failed = step.loss_N.tolist(), step.failed_N.tolist()
    for number, (member, trainer) in enumerate(zip(members, trainers, strict=True)):
        if member.stopped is not None:
            continue
        trainer.loss = losses[number]
        if failed[number] >= 0:
            trainer.step = failed[number]
            member.stopped = f"loss or gradient not finite {trainer.where_and_what_to_do()}"
            continue
        record = trainer.record()
        member.history.append(record)
        member.stopped = session.reason_to_stop(member, trainer, record)
        if member.stopped is not None:
            step.release(number)


class _PackedRows:
    """Every member's batches side by side; rows that members share are held once."""

    def __init__(self, members: "list[Member]", trainers: list[Trainer]):
        self.members, self.trainers = members, trainers
        sources = {
            id(member.rows): trainer.train
            for member, trainer in zip(members, trainers, strict=True)
        }
        self.rows_URD = torch.stack([source.read(0, len(source)) for source in sources.values()])
        device, places = self.rows_URD.device, list(sources)
        self.source_N1 = torch.tensor([[places.index(id(m.rows))] for m in members], device=device)
        self.scale_N = torch.tensor([trainer.scale for trainer in trainers], device=device)

    def batches(self) -> Iterator[Tensor]:
        """``[N, batch, d_in]``, scaled, in float32; the last of an epoch may be smaller."""
        training = self.members[0].training
        for epoch in range(training.passes(self.rows_URD.shape[1])):
            order_NR = torch.stack([self._order(member, epoch) for member in self.members])
            for index_NB in order_NR.to(self.rows_URD.device).split(training.batch_size, dim=1):
                x_NBD = self.rows_URD[self.source_N1, index_NB].float()
                yield x_NBD * self.scale_N[:, None, None]

    def _order(self, member: "Member", epoch: int) -> Tensor:
        """All row numbers in the order of that epoch, as ``RowSource.epoch`` takes them."""
        every = windows(len(member.rows), member.training.shuffle_rows, member.seed, epoch)
        return torch.cat([window.start + window.order for window in every])
