"""The batches of a packed program, side by side, centred and scaled for each of its SAEs.

Shapes: N SAEs, U different sources of rows, R rows, B batch, D d_in.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from raysae.training.ensemble.members import Member
from raysae.training.rows import Rows, StreamPosition

Batches = Iterator[tuple[Tensor, StreamPosition | None]]
"""Batches ``[saes, batch, d_in]`` in float32, each with the position after it, or None where the members'
streams have theirs already; the last batch of an epoch may be smaller."""


def rows_of(members: list[Member]) -> "PackedRows | FedRows | HandedRows":
    """The batches of members that are trained together, from rows in memory or from one feed."""
    in_memory = all(isinstance(member.trainer.train, Rows) for member in members)
    return PackedRows(members) if in_memory else FedRows(members)


class Inputs:
    """What turns the rows of each member into its inputs."""

    waits = False
    """Whether a batch may be waited for, which its feed measures."""

    def __init__(self, members: list[Member]):
        self.members = members
        self.mean_ND = torch.stack([m.trainer.mean_D for m in members])
        self.scale_N = self.mean_ND.new_tensor([m.trainer.scale for m in members])

    def keep(self, numbers: Sequence[int]) -> None:
        """From the next call of ``placed`` on, give the batches of these members alone."""
        self.members = [self.members[number] for number in numbers]
        self.mean_ND = self.mean_ND[list(numbers)]
        self.scale_N = self.scale_N[list(numbers)]

    def inputs(self, x_NBD: Tensor) -> Tensor:
        """The rows of each member, centred and scaled, in place."""
        return x_NBD.sub_(self.mean_ND[:, None]).mul_(self.scale_N[:, None, None])


class PackedRows(Inputs):
    """Every member's batches from rows in memory; rows that members share are stored once."""

    def __init__(self, members: list[Member]):
        super().__init__(members)
        sources = {id(member.rows): member.trainer.train for member in members}
        blocks = [_block(rows) for rows in sources.values()]
        if len({block.device for block in blocks}) > 1:  # some did not fit on the device
            blocks = [block.cpu() for block in blocks]
        self.rows_URD = blocks[0][None] if len(blocks) == 1 else torch.stack(blocks)
        device, places = self.rows_URD.device, list(sources)
        self.source_N1 = torch.tensor([[places.index(id(m.rows))] for m in members], device=device)

    def keep(self, numbers: Sequence[int]) -> None:
        """See ``Inputs.keep``."""
        super().keep(numbers)
        self.source_N1 = self.source_N1[list(numbers)]

    def placed(self, position: StreamPosition | None) -> Batches:
        """The batches from ``position`` on."""
        assert position is not None
        training, rows = self.members[0].training, self.rows_URD.shape[1]
        taken = position.rows
        for epoch in range(position.epoch, training.passes(rows)):
            order_NR = torch.stack([self._order(member, epoch, taken) for member in self.members])
            for index_NB in order_NR.to(self.rows_URD.device).split(training.batch_size, dim=1):
                taken += index_NB.shape[1]
                x_NBD = self.rows_URD[self.source_N1, index_NB].to(self.mean_ND).float()
                following = StreamPosition(epoch + 1) if taken == rows else None
                yield self.inputs(x_NBD), following or StreamPosition(epoch, taken)
            taken = 0

    def _order(self, member: Member, epoch: int, taken: int) -> Tensor:
        """The epoch's row numbers after the first ``taken``, as ``RowSource.epoch`` orders them."""
        every = member.rows.windows(member.seed, epoch, member.training.shuffle_rows, taken)
        return torch.cat([window.start + window.order for window in every])


class FedRows(Inputs):
    """The batches of one feed, which all members train on, such as rows that are streamed."""

    waits = True

    def __init__(self, members: list[Member]):
        super().__init__(members)
        for member in members[1:]:
            member.trainer.follow(members[0].trainer)
        self.feed = members[0].trainer.feed
        self._batches = iter(self.feed)  # one for all, as rows may come past once

    def placed(self, position: StreamPosition | None) -> Batches:
        """The batches from ``position`` on, where the feed stands."""
        for batch_BD in self._batches:
            x_NBD = batch_BD.to(self.mean_ND).expand(len(self.members), -1, -1)
            yield self.inputs(x_NBD.clone()), self.feed.stream.position


class HandedRows(Inputs):
    """The batches that lie in ``batches`` whenever the next is taken: each member's is the one of the
    number in ``sources``. Whoever reads them puts them there."""

    def __init__(
        self, members: list[Member], batches: Sequence[Tensor | None], sources: Sequence[int]
    ):
        super().__init__(members)
        self.batches, self.sources = batches, list(sources)

    def keep(self, numbers: Sequence[int]) -> None:
        """See ``Inputs.keep``."""
        super().keep(numbers)
        self.sources = [self.sources[number] for number in numbers]

    def placed(self, position: StreamPosition | None) -> Batches:
        """The batches, without end."""
        while True:
            here = {number: self.batches[number] for number in set(self.sources)}
            given = {n: one.to(self.mean_ND) for n, one in here.items() if one is not None}
            yield self.inputs(torch.stack([given[number] for number in self.sources])), None


def _block(rows: object) -> Tensor:
    """All rows ``[rows, d_in]`` in one tensor; not copied when they are one block already."""
    assert isinstance(rows, Rows)
    return rows.blocks[0] if len(rows.blocks) == 1 else rows.read(0, len(rows))
