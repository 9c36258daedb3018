"""The engine for several SAEs in one process.

Members that take the same batches share the reading of them; on GPUs members of one shape are one packed
program. Each member ends as it would alone, to the bit where it is not packed; one that fails or stops
leaves the others alone.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial

from raysae.training.ensemble.checkpoints import Checkpoints, begin
from raysae.training.ensemble.lockstep import Lockstep
from raysae.training.ensemble.members import Member, Record
from raysae.training.ensemble.plan import Group, plan
from raysae.training.ensemble.program import PackedProgram
from raysae.training.ensemble.stopping import StopRules
from raysae.training.initialisation import StatisticsCache
from raysae.training.trainer import Trainer


def _nothing(*_: object) -> None:
    """What an ensemble calls where its user wants no call."""


class Ensemble:
    """Trains ``members`` on ``device``; iterate ``rounds()`` or ``groups()``, once.

    - ``pack``: whether SAEs of one shape are trained as one packed program; None: on GPUs.
    - ``rules``: what ends a member early, beside its budget.
    - ``statistics``: those of the rows, known from other ensembles.
    - ``checkpoint_seconds``: how often members with a checkpoint folder are saved; ``on_saved`` gets
      the members that were.
    - ``after_batch`` gets the tokens that all members together were trained on with a batch.
    - ``on_record`` gets a member and its record at each evaluation.
    - ``on_end`` gets a member that fails or stops early.

    What these calls raise ends the training of all.
    """

    def __init__(
        self,
        members: Sequence[Member],
        device: str = "cpu",
        *,
        pack: bool | None = None,
        rules: StopRules | None = None,
        statistics: StatisticsCache | None = None,
        checkpoint_seconds: float = math.inf,
        on_saved: Callable[[list[Member]], object] = _nothing,
        after_batch: Callable[[int], object] = _nothing,
        on_record: Callable[[Member, Record], object] = _nothing,
        on_end: Callable[[Member], object] = _nothing,
    ):
        self.members, self.device, self.pack = list(members), device, pack
        self.rules, self.statistics = rules or StopRules(), statistics or StatisticsCache()
        self.checkpoints = Checkpoints(checkpoint_seconds, on_saved)
        self._after_batch, self._on_record, self._on_end = after_batch, on_record, on_end
        self._running: list[Lockstep | PackedProgram] = []

    def rounds(self) -> Iterator[list[Member]]:
        """Train all members side by side, yielding after each evaluation that all active members have
        passed: those that have ended since the last, with their last step or before it.

        Raises ValueError, before any training, on rows that pass by once and are wanted twice.
        """
        if not self.members:
            return
        groups = plan(self.members, self.device, self.pack, side_by_side=True)
        self._begin(self.members)
        runs = [
            (part.members, self._run(part).rounds())
            for group in groups
            for part in group.equally_far()
        ]
        waiting = list(self.members)
        passed = min((len(member.history) for member in waiting if member.active), default=0)
        while waiting:
            passed += 1
            for members, evaluations in runs:
                while any(m.active and len(m.history) < passed for m in members):
                    next(evaluations)
            ended = [member for member in waiting if not member.active]
            waiting = [member for member in waiting if member.active]
            yield ended

    def groups(self) -> Iterator[list[Member]]:
        """Train one group of members after another, which takes the least memory, yielding the members
        of each when they have ended. Raises what ``rounds`` raises."""
        for group in plan(self.members, self.device, self.pack, side_by_side=False):
            self._begin(group.members)
            for part in group.equally_far():
                for _ in self._run(part).rounds():
                    pass
                self._running.clear()
            yield group.members

    def after_batch(self, tokens: int) -> None:
        """A batch has been trained on, ``tokens`` in all; save the members where it is time."""
        self._after_batch(tokens)
        if self.checkpoints.due:
            for run in self._running:
                run.settle()
            self.checkpoints.save(self.members)

    def record(self, member: Member, record: Record) -> None:
        """A member has been evaluated."""
        member.history.append(record)
        self._on_record(member, record)

    def stop_by_rule(self, member: Member, record: Record | None) -> None:
        """Stop a member where a rule says so, after a step at which it may have been evaluated."""
        reason = self.rules.reason(member, record)
        if reason is not None:
            member.stop(reason)
            self._on_end(member)

    def fail(self, member: Member, error: Exception) -> None:
        """End a member by what it raised."""
        member.failure = error
        self._on_end(member)

    def _begin(self, members: Sequence[Member]) -> None:
        for member in members:
            if member.begun or not member.active:
                continue
            try:
                begin(member, partial(self._trainer, member))
            except Exception as error:
                self.fail(member, error)

    def _trainer(self, member: Member) -> Trainer:
        return Trainer(
            member.config, member.training, member.rows, member.validation, seed=member.seed,
            device=self.device, truth=member.truth,
            statistics=self.statistics.of(
                member.rows, member.validation, member.seed, member.training.shuffle_rows
            ),
        )  # fmt: skip

    def _run(self, group: Group) -> Lockstep | PackedProgram:
        run = (PackedProgram if group.packed else Lockstep)(group.members, self)
        self._running.append(run)
        return run


def train_members(
    members: Sequence[Member],
    device: str = "cpu",
    *,
    pack: bool | None = None,
    statistics: StatisticsCache | None = None,
    checkpoint_seconds: float = math.inf,
    on_saved: Callable[[list[Member]], object] = _nothing,
    after_batch: Callable[[int], object] = _nothing,
    on_record: Callable[[Member, Record], object] = _nothing,
) -> Iterator[Member]:
    """Train one member or several, such as the sites of an atlas; each is yielded once it has ended.

    A member continues from its checkpoint, where it has one. ``Member.failure`` says what went wrong;
    else ``Member.trainer`` has the SAE and ``Member.history`` its records. Call
    ``Member.discard_checkpoint()`` when the result is written. The arguments are those of ``Ensemble``.
    """
    ensemble = Ensemble(
        members, device, pack=pack, statistics=statistics, checkpoint_seconds=checkpoint_seconds,
        on_saved=on_saved, after_batch=after_batch, on_record=on_record,
    )  # fmt: skip
    for ended in ensemble.rounds():
        yield from ended
