"""Members on rows that come past for several readers, such as live ones: SAEs of one shape are packs.

Each batch of each source is read once, by a thread ahead of the training, and trains all members on it:
so all are at the same step, and none reads far ahead of another. Shapes: B batch, D d_in.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from typing import TYPE_CHECKING

from torch import Tensor

from raysae.training.ensemble.members import Member
from raysae.training.ensemble.packed_rows import HandedRows
from raysae.training.ensemble.plan import batches_of, packs_of
from raysae.training.ensemble.program import PackedProgram
from raysae.training.feeding import ReadAhead

if TYPE_CHECKING:
    from raysae.training.ensemble.engine import Ensemble


class Source:
    """The batches that some members train on: they are read once for all of them."""

    def __init__(self, members: list[Member]):
        self.members = members
        for member in members[1:]:
            member.trainer.follow(members[0].trainer)
        self.feed = members[0].trainer.feed
        self.ahead: ReadAhead | None = None
        self._batches: Iterator[Tensor] | None = None

    @property
    def active(self) -> bool:
        """Whether one of its members has steps left."""
        return any(member.active for member in self.members)

    def read(self) -> Tensor | None:
        """The next batch ``[batch, d_in]``; None at the end."""
        if self._batches is None:
            self._batches = self.ahead or iter(self.feed)
        return next(self._batches, None)

    def close(self) -> None:
        """Let go of the rows."""
        if self.ahead is not None:
            self.ahead.close()
            self.ahead = None


class PassingPacks:
    """Trains ``members``, which have batches of the same sizes and are at the same step."""

    def __init__(self, members: list[Member], ensemble: "Ensemble"):
        self.members, self.ensemble = members, ensemble
        together: dict[object, list[Member]] = {}
        for member in members:
            together.setdefault(batches_of(member), []).append(member)
        self.sources = [Source(part) for part in together.values()]
        self._batches: list[Tensor | None] = [None] * len(self.sources)
        """The batch of each source that is trained on."""
        numbers = {
            member: number for number, one in enumerate(self.sources) for member in one.members
        }
        packs, self.alone = packs_of(members)
        self.packs = [
            PackedProgram(part, ensemble, self._handed([numbers[member] for member in part]))
            for part in packs
        ]
        self._steps = [pack.steps() for pack in self.packs]
        self._source_of = numbers

    def _handed(self, numbers: list[int]) -> Callable[[list[Member]], HandedRows]:
        return lambda members: HandedRows(members, self._batches, numbers)

    def read_ahead(self, pool: Executor) -> None:
        """Read each batch by a thread of ``pool`` while others are trained on, from now on."""
        for one in self.sources:
            one.ahead = ReadAhead(one.feed, pool)

    @property
    def aheads(self) -> list[ReadAhead]:
        """The batches that are read ahead and needed next."""
        return [one.ahead for one in self.sources if one.ahead is not None and one.active]

    @property
    def active(self) -> list[Member]:
        """The members that have steps left."""
        return [member for member in self.members if member.active]

    @property
    def progress(self) -> float:
        """The fraction of its steps that the first active member has done."""
        trainer = self.active[0].trainer
        return trainer.step / max(trainer.steps, 1)

    def rounds(self) -> Iterator[None]:
        """Train to the end; yield after each batch at which a member was evaluated."""
        for evaluated in self.steps():
            if evaluated:
                yield

    def steps(self) -> Iterator[bool]:
        """Train to the end; yield after each batch whether a member was evaluated at it."""
        while self.active:
            seen = sum(len(member.history) for member in self.members)
            self._read()
            if self.active:
                self.ensemble.after_batch(self._train())
            yield sum(len(member.history) for member in self.members) > seen
        for one in self.sources:
            one.close()
        yield True

    def settle(self) -> None:
        """Copy the packs' state to the trainers."""
        for pack in self.packs:
            pack.settle()

    def _read(self) -> None:
        """Read the next batch of every source. Where one ends or cannot be read, its members end."""
        for number, one in enumerate(self.sources):
            if not one.active:
                one.close()
                continue
            try:
                self._batches[number] = one.read()
            except Exception as error:
                for member in one.members:
                    if member.active:
                        self.ensemble.fail(member, error)
                continue
            if self._batches[number] is None:
                self._end(one)

    def _end(self, source: Source) -> None:
        """Evaluate members whose rows ended before their last step."""
        self.settle()
        for member in source.members:
            if not member.active:
                continue
            try:
                self.ensemble.record(member, member.trainer.end())
            except Exception as error:
                self.ensemble.fail(member, error)

    def _train(self) -> int:
        """Train all on the batches that were read; returns the training tokens."""
        tokens = 0
        for steps in self._steps:
            _, trained = next(steps, (False, 0))
            tokens += trained
        for member in self.alone:
            tokens += self._take(member)
        return tokens

    def _take(self, member: Member) -> int:
        """Train a member that is in no pack; returns its training tokens."""
        batch_BD = self._batches[self._source_of[member]]
        if not member.active or batch_BD is None:
            return 0
        try:
            record = member.trainer.take(batch_BD)
        except Exception as error:  # a member that fails must not end the others
            self.ensemble.fail(member, error)
            return 0
        if record is not None:
            self.ensemble.record(member, record)
        self.ensemble.stop_by_rule(member, record)
        return len(batch_BD)
