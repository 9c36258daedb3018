"""Members on the same batches: each batch is read once and trains one member after another.

On a CPU every step uses all threads, as in a training alone. One thread per SAE is no faster
(scripts/bench_packing.py) and would not give the same bits. Shapes: B batch, D d_in.
"""

from collections.abc import Iterator
from concurrent.futures import Executor
from typing import TYPE_CHECKING

from torch import Tensor

from raysae.training.ensemble.members import Member
from raysae.training.feeding import ReadAhead

if TYPE_CHECKING:
    from raysae.training.ensemble.engine import Ensemble


class Lockstep:
    """Trains ``members``, which use the same batches and are at the same step."""

    def __init__(self, members: list[Member], ensemble: "Ensemble"):
        self.members, self.ensemble = members, ensemble
        for member in members[1:]:
            member.trainer.follow(members[0].trainer)
        self.ahead: ReadAhead | None = None
        """Its batches, where they are read ahead."""

    def read_ahead(self, pool: Executor) -> None:
        """Read each batch by a thread of ``pool`` while other parts are trained, from now on."""
        self.ahead = ReadAhead(self.members[0].trainer.feed, pool)

    @property
    def aheads(self) -> list[ReadAhead]:
        """The batches that are read ahead and needed next."""
        return [] if self.ahead is None else [self.ahead]

    @property
    def active(self) -> list[Member]:
        """The members that have steps left."""
        return [member for member in self.members if member.active]

    def rounds(self) -> Iterator[None]:
        """Train to the end; yield after each batch at which a member was evaluated."""
        for evaluated in self.steps():
            if evaluated:
                yield

    @property
    def progress(self) -> float:
        """The fraction of its steps that the first active member has done."""
        trainer = self.active[0].trainer
        return trainer.step / max(trainer.steps, 1)

    def steps(self) -> Iterator[bool]:
        """Train to the end; yield after each batch whether a member was evaluated at it."""
        batches = self.ahead or iter(self.members[0].trainer.feed)
        while active := self.active:
            batch_BD = self._read(batches)
            if batch_BD is None:
                break
            seen = sum(len(member.history) for member in active)
            trained = [member for member in active if self._take(member, batch_BD)]
            self.ensemble.after_batch(len(batch_BD) * len(trained))
            yield sum(len(member.history) for member in active) > seen
        for member in self.active:
            self._end(member)
        if self.ahead is not None:
            self.ahead.close()
        yield True

    def _end(self, member: Member) -> None:
        """Evaluate a member whose rows ended before its last step."""
        try:
            self.ensemble.record(member, member.trainer.end())
        except Exception as error:
            self.ensemble.fail(member, error)

    def settle(self) -> None:
        """Do nothing: the trainers are always up to date."""

    def _read(self, batches: Iterator[Tensor]) -> Tensor | None:
        """The next batch ``[batch, d_in]``; None at the end, or when reading failed."""
        try:
            return next(batches, None)
        except Exception as error:
            for member in self.active:
                self.ensemble.fail(member, error)
            return None

    def _take(self, member: Member, batch_BD: Tensor) -> bool:
        """Train one member on the batch; returns whether it was trained."""
        if not member.active:  # the failure of another member may have ended it
            return False
        try:
            record = member.trainer.take(batch_BD)
        except Exception as error:  # a member that fails must not end the others
            self.ensemble.fail(member, error)
            return False
        if record is not None:
            self.ensemble.record(member, record)
        self.ensemble.stop_by_rule(member, record)
        return True
