"""``raysae.fit_many``: many SAEs in one process, without paying for each what all can share.

Members that take the same batches (the same rows, seed, batch size and passes) form a gang: each batch is
read once for all of them. On a CPU each step has all threads, as it has alone: one SAE a thread is no
faster (scripts/bench_packing.py), and would not end at the same bits.
Shapes: B batch, D d_in.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from raysae.sae import SAEConfig
from raysae.sae import sae_config as checked_config
from raysae.training.config import TrainingConfig
from raysae.training.fitting import Fit, Held, checked_splits, checked_training, outcome
from raysae.training.initialisation import Footing, footing
from raysae.training.packs import packs_of, train_pack
from raysae.training.rows import RowSource, Splits, same_d_in
from raysae.training.trainer import NonFiniteLossError, Trainer

Keep = Callable[[int, dict[str, Any]], bool]
"""Told a member's number and each of its records; whether it goes on."""
Configs = SAEConfig | Mapping[str, Any]
_Held = dict[tuple[int, int], tuple[RowSource, RowSource]]
"""Rows that are ready to train on, by the identity of what was given."""


@dataclass
class Member:
    """One SAE of many, before and while it is trained."""

    number: int
    config: SAEConfig
    training: TrainingConfig
    rows: RowSource
    held_out: RowSource
    seed: int
    truth: Tensor | None
    trainer: Trainer | None = None
    history: list[dict[str, Any]] = field(default_factory=list)
    stopped: str | None = None

    @property
    def batches(self) -> tuple[Any, ...]:
        """What the order and size of its batches follow from."""
        training = self.training
        return (
            id(self.rows), self.seed, training.epochs, training.tokens, training.batch_size,
            training.shuffle_rows,
        )  # fmt: skip


def fit_many(
    sae_configs: Configs | Sequence[Configs],
    train: Held | Splits | Sequence[Tensor | RowSource | Splits],
    training_config: TrainingConfig | Mapping[str, Any] | Sequence[Any] | None = None,
    *,
    validation: Held | Sequence[Tensor | RowSource] | None = None,
    seeds: int | Sequence[int] = 0,
    device: str = "cpu",
    keep: Keep | None = None,
    max_seconds: float | None = None,
    pack: bool | None = None,
    progress: bool = True,
) -> list[Fit]:
    """Train N SAEs together; their outcomes in the order of the arguments.

    Each argument is one for all members or a list with one for each: configs as in ``raysae.fit``, rows
    ``[rows, d_in]`` as tensors, sources or a store's sites (an iterator, which can be read once, is for
    ``raysae.fit``). Every member ends as if it were alone. With ``pack`` (None: on GPUs), TopK and
    BatchTopK SAEs of one shape are one program.

    A member leaves early, and the others do not notice, when its loss is no longer finite (its SAE is
    that of the step before), when no latent of it fires at an evaluation, when it has trained for
    ``max_seconds``, or when ``keep(number, record)`` is false; ``Fit.stopped`` then says why.
    Raises ValueError, before any training, on configs or rows that cannot train.
    """
    members = _members(sae_configs, train, training_config, validation, seeds, device)
    with _bar(members, progress) as advance:
        session = Session(device, keep, max_seconds, advance)
        return session.train(members, torch.device(device).type == "cuda" if pack is None else pack)


class Session:
    """One call's settings and shared preparations."""

    def __init__(
        self,
        device: str,
        keep: Keep | None,
        max_seconds: float | None,
        advance: Callable[[int], object],
    ):
        self.device, self.keep, self.max_seconds = device, keep, max_seconds
        self.advance = advance
        self.footings: dict[tuple[Any, ...], Footing] = {}

    def train(self, members: list[Member], pack: bool) -> list[Fit]:
        """All members' outcomes, in their order."""
        packs, rest = packs_of(members, self.device) if pack else ([], members)
        fits: dict[int, Fit] = {}
        for packed in packs:
            train_pack(packed, self)
            fits |= dict(self._outcome(0.0, member) for member in packed)
        gangs: dict[tuple[Any, ...], list[Member]] = {}
        for member in rest:
            gangs.setdefault(member.batches, []).append(member)
        for gang in gangs.values():
            fits |= self._gang(gang)
        return [fits[member.number] for member in members]

    def _gang(self, gang: list[Member]) -> dict[int, Fit]:
        """Train members on the same batches."""
        trainers = [self.prepared(member) for member in gang]
        feed = trainers[0].feed
        active = gang
        for batch_BD in feed:
            for member in active:
                self._take(batch_BD, member)
            active = [member for member in active if not self._done(member)]
            if not active:
                break
        for member in active:  # rows that came to an end before their time
            assert member.trainer is not None
            member.history.append(member.trainer.end())
        return dict(self._outcome(feed.waited, member) for member in gang)

    def prepared(self, member: Member) -> Trainer:
        """The member's trainer, from now on."""
        member.trainer = Trainer(
            member.config, member.training, member.rows, member.held_out, seed=member.seed,
            device=self.device, truth=member.truth, footing=self._footing(member),
        )  # fmt: skip
        return member.trainer

    def _footing(self, member: Member) -> Footing:
        """The rows' scale, centre and mean, worked out once for all members that share them."""
        shuffle = member.training.shuffle_rows
        key = id(member.rows), id(member.held_out), member.seed, shuffle
        if key not in self.footings:
            self.footings[key] = footing(member.rows, member.held_out, member.seed, shuffle)
        return self.footings[key]

    def _take(self, batch_BD: Tensor, member: Member) -> None:
        trainer = member.trainer
        assert trainer is not None
        try:
            record = trainer.take(batch_BD)
        except NonFiniteLossError as error:
            member.stopped = str(error)
            return
        self.advance(len(batch_BD))
        if record is not None:
            member.history.append(record)
        member.stopped = self.reason_to_stop(member, trainer, record)

    def reason_to_stop(
        self, member: Member, trainer: Trainer, record: dict[str, Any] | None
    ) -> str | None:
        """Why the member does not go on; None when it does, or has come to its end."""
        at = f"at step {trainer.step} of {trainer.steps}"
        if trainer.step == trainer.steps:
            return None
        if record is not None and record["degenerate"]:
            return f"degenerate {at}: no latent fires on the validation rows"
        if self.max_seconds is not None and trainer.seconds > self.max_seconds:
            return f"{at} it had trained for {trainer.seconds:.1f} s of {self.max_seconds:g} s"
        if record is not None and self.keep is not None and not self.keep(member.number, record):
            return f"not kept {at}"
        return None

    def _done(self, member: Member) -> bool:
        assert member.trainer is not None
        return member.stopped is not None or member.trainer.step == member.trainer.steps

    def _outcome(self, waited: float, member: Member) -> tuple[int, Fit]:
        trainer, member.trainer = member.trainer, None  # its memory is the next member's
        assert trainer is not None
        fit = outcome(trainer, member.history, wait_seconds=waited, stopped=member.stopped)
        return member.number, fit


@contextmanager
def _bar(members: list[Member], progress: bool) -> Iterator[Callable[[int], object]]:
    """A progress bar over the tokens of all members."""
    from tqdm.auto import tqdm

    total = sum(member.training.training_tokens(len(member.rows)) for member in members)
    with tqdm(
        total=total, disable=not progress, unit="tok", unit_scale=True, desc=f"{len(members)} SAEs"
    ) as bar:
        yield bar.update


def _members(
    sae_configs: Any, train: Any, training_config: Any, validation: Any, seeds: Any, device: str
) -> list[Member]:
    """One for each, of arguments that are for all or one for each."""
    given = {
        "sae_configs": sae_configs, "train": train, "training_config": training_config,
        "validation": validation, "seeds": seeds,
    }  # fmt: skip
    lengths = {name: len(value) for name, value in given.items() if isinstance(value, list | tuple)}
    counts = set(lengths.values())
    if len(counts) > 1:
        found = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise ValueError(f"lists have one entry for each SAE, so equal lengths; found {found}")
    count = counts.pop() if counts else 1
    if not count:
        raise ValueError("there is nothing to train: an empty list")
    columns = [value if name in lengths else [value] * count for name, value in given.items()]
    held: _Held = {}
    return [
        _member(number, held, device, *row) for number, row in enumerate(zip(*columns, strict=True))
    ]


def _member(
    number: int, held: _Held, device: str, config: Any, train: Any, training: Any, held_out: Any,
    seed: int,
) -> Member:  # fmt: skip
    checked = checked_training(training or {})
    try:
        key = id(train), id(held_out)
        if key not in held:
            splits = checked_splits(train, held_out, checked)
            held[key] = splits[0].to(device), splits[1].to(device)
        rows, validation = held[key]
        same_d_in(rows, validation)
        checked_sae = checked_config(config)
    except ValueError as error:
        raise ValueError(f"SAE {number}: {error}") from None
    truth = train.truth if isinstance(train, Splits) else None
    return Member(number, checked_sae, checked, rows, validation, seed, truth)
