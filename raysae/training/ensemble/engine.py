"""The engine that trains several SAEs in one process.

Members that train on the same batches share reading them. On GPUs, members of one shape are one
packed program. Each member ends as it would if trained alone: with the same bits when it is not
packed. A member that fails or stops does not affect the others.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

from raysae.training.ensemble.checkpoints import Checkpoints, begin
from raysae.training.ensemble.lockstep import Lockstep
from raysae.training.ensemble.members import Member, Record
from raysae.training.ensemble.passing import PassingPacks
from raysae.training.ensemble.plan import Group, plan
from raysae.training.ensemble.program import PackedProgram
from raysae.training.ensemble.stopping import StopRules
from raysae.training.feeding import wait_for_one
from raysae.training.lost_device import raise_if_lost
from raysae.training.memory import release_cached
from raysae.training.statistics import StatisticsCache
from raysae.training.trainer import Trainer

Run = Lockstep | PackedProgram | PassingPacks


def _nothing(*_: object) -> None:
    """The default of every callback: does nothing."""


class Ensemble:
    """Trains ``members`` on ``device``; iterate ``rounds()`` or ``groups()``, once.

    - ``pack``: whether SAEs of one shape are trained as one packed program; None: on GPUs only.
    - ``rules``: rules that stop a member early, in addition to its budget.
    - ``statistics``: a cache of row statistics that several ensembles share.
    - ``checkpoint_seconds``: seconds between checkpoints of the members that have a checkpoint
      folder; ``on_saved`` is called with the members that were saved.
    - ``on_begin`` is called with a member that has its trainer, before its first step.
    - ``after_batch`` is called after each batch with its training tokens, summed over the members.
    - ``on_record`` is called with a member and its record at each evaluation.
    - ``on_end`` is called with a member that fails or stops early.

    An exception from one of these callbacks ends the training of all members.
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
        on_begin: Callable[[Member], object] = _nothing,
        after_batch: Callable[[int], object] = _nothing,
        on_record: Callable[[Member, Record], object] = _nothing,
        on_end: Callable[[Member], object] = _nothing,
    ):
        self.members, self.device, self.pack = list(members), device, pack
        self.rules, self.statistics = rules or StopRules(), statistics or StatisticsCache()
        self.checkpoints = Checkpoints(checkpoint_seconds, on_saved)
        self._after_batch, self._on_record, self._on_end = after_batch, on_record, on_end
        self._on_begin = on_begin
        self._running: list[Run] = []

    def rounds(self, together: bool = True) -> Iterator[list[Member]]:
        """Train all members side by side. After each round of evaluations, yield the members that
        have ended since the last round, by their last step, a stop or a failure.

        ``together``: whether a round has an evaluation of every member. Without it, a round of members
        whose rows come past once may end with the evaluation of any, so that none waits for another.
        Raises ValueError, before any training, when rows that can be read once are needed twice.
        """
        if not self.members:
            return
        groups = plan(self.members, self.device, self.pack, side_by_side=True)
        self._begin(self.members)
        parts = [part for group in groups for part in group.by_step()]
        advance = self._advance(parts, together)
        waiting = list(self.members)
        passed = min((len(member.history) for member in waiting if member.active), default=0)
        while waiting:
            passed += 1
            advance(passed)
            ended = [member for member in waiting if not member.active]
            waiting = [member for member in waiting if member.active]
            if not waiting:  # they refer to this object, and both would keep the rows in memory
                self._running.clear()
            yield ended

    def _advance(self, parts: list[Group], together: bool) -> Callable[[int], None]:
        """A function that trains all parts until their members have passed so many evaluations; or, not
        ``together``, until some have passed another."""
        runs = [(part.members, self._run(part)) for part in parts]
        paced = [run for _, run in runs if not isinstance(run, PackedProgram)]
        if len(paced) == len(runs) and any(member.rows.passing for member in self.members):
            pool = ThreadPoolExecutor(len(self.members))  # each may read rows of its own
            for run in paced:
                run.read_ahead(pool)
            passing = [Part(run, run.steps()) for run in paced]
            return partial(_keep_pace, passing) if together else partial(_until_one, passing)
        return partial(_one_by_one, [(members, run.rounds()) for members, run in runs])

    def groups(self) -> Iterator[list[Member]]:
        """Train one group of members after another, which needs the least memory. Yield the members
        of each group when they have ended. Raises what ``rounds`` raises."""
        for group in plan(self.members, self.device, self.pack, side_by_side=False):
            self._begin(group.members)
            for part in group.by_step():
                for _ in self._run(part).rounds():
                    pass
                self._running.clear()
            yield group.members
            release_cached(self.device)  # the next group may have other sizes

    def after_batch(self, tokens: int) -> None:
        """Called after each batch with its training tokens; saves the members when that is due."""
        self._after_batch(tokens)
        if self.checkpoints.due:
            for run in self._running:
                run.settle()
            self.checkpoints.save(self.members)

    def record(self, member: Member, record: Record) -> None:
        """Add the record of an evaluation to the member's history."""
        member.history.append(record)
        self._on_record(member, record)

    def stop_by_rule(self, member: Member, record: Record | None) -> None:
        """Stop a member after a step if a rule says so; ``record`` is that of an evaluation."""
        reason = self.rules.reason(member, record)
        if reason is not None:
            member.stop(reason)
            self._on_end(member)

    def fail(self, member: Member, error: Exception) -> None:
        """End a member because of the exception ``error``; it is raised when the GPU is lost."""
        raise_if_lost(error)
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
            else:
                self._on_begin(member)

    def _trainer(self, member: Member) -> Trainer:
        return Trainer(
            member.config, member.training, member.rows, member.validation, seed=member.seed,
            device=self.device, truth=member.truth,
            statistics=self.statistics.of(
                member.rows, member.validation, member.seed, member.training
            ),
        )  # fmt: skip

    def _run(self, group: Group) -> Run:
        make: type[Run] = PackedProgram if group.packed else Lockstep
        if group.packed and group.members[0].rows.passing:
            make = PassingPacks
        run = make(group.members, self)
        self._running.append(run)
        return run


def _one_by_one(runs: list[tuple[list[Member], Iterator[None]]], passed: int) -> None:
    """Train one part after another until its members have passed so many evaluations."""
    for members, evaluations in runs:
        while _are_behind(members, passed):
            next(evaluations)


@dataclass(frozen=True)
class Part:
    """Members on rows that come past once, which are at the same step, and their training so far."""

    run: Lockstep | PassingPacks
    steps: Iterator[bool]
    """Trains on a batch; whether a member was evaluated at it, or all have ended."""

    @property
    def is_ready(self) -> bool:
        """Whether all batches of its next step are there."""
        return all(ahead.is_ready for ahead in self.run.aheads)

    def train(self) -> bool:
        """Train on the batches at hand, or on the next; whether a member was evaluated, or all ended.

        What is at hand is trained on in one go, as the weights are in the processor's cache by then.
        """
        evaluated = next(self.steps)
        while not evaluated and (aheads := self.run.aheads):
            if not all(ahead.is_at_hand for ahead in aheads):
                return False
            evaluated = next(self.steps)
        return evaluated


def _keep_pace(parts: list[Part], passed: int) -> None:
    """Train all parts until their members have passed so many evaluations."""
    while behind := [part for part in parts if _are_behind(part.run.members, passed)]:
        _first_of(behind).train()


def _until_one(parts: list[Part], passed: int) -> None:
    """Train all parts until members of one have passed another evaluation, or have ended."""
    while left := [part for part in parts if part.run.active]:
        if _first_of(left).train():
            return


def _first_of(parts: list[Part]) -> Part:
    """The part to train next: the one furthest behind of those whose batch is there."""
    while not (ready := [part for part in parts if part.is_ready]):
        every = [ahead for part in parts for ahead in part.run.aheads]
        wait_for_one([ahead for ahead in every if not ahead.is_ready])
    return min(ready, key=lambda part: part.run.progress)


def _are_behind(members: list[Member], passed: int) -> bool:
    return any(member.active and len(member.history) < passed for member in members)


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
    """Train one or several members, such as the sites of an atlas; each is yielded when it has
    ended.

    A member that has a checkpoint continues from it. ``Member.failure`` is the exception that ended
    a member, or None; then ``Member.trainer`` has the SAE and ``Member.history`` its records. Call
    ``Member.discard_checkpoint()`` when the result is written. Arguments and errors are those of
    ``Ensemble``.
    """
    ensemble = Ensemble(
        members, device, pack=pack, statistics=statistics, checkpoint_seconds=checkpoint_seconds,
        on_saved=on_saved, after_batch=after_batch, on_record=on_record,
    )  # fmt: skip
    for ended in ensemble.rounds():
        yield from ended
