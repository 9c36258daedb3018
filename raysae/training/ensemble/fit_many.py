"""``raysae.fit_many``: train many SAEs in one process, sharing what they have in common."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from raysae.sae import SAEConfig
from raysae.sae import sae_config as checked_config
from raysae.training.config import TrainingConfig
from raysae.training.ensemble.engine import Ensemble
from raysae.training.ensemble.members import Member
from raysae.training.ensemble.stopping import Budget, StopRules
from raysae.training.finite import NonFiniteLossError
from raysae.training.fitting import Fit, outcome, tell_health
from raysae.training.given import (
    GivenRows,
    checked_device,
    checked_seed,
    checked_splits,
    checked_training,
)
from raysae.training.rows import IndexedRows, RowSource, Splits, same_d_in

Keep = Callable[[int, dict[str, Any]], bool]
"""Called with a member's number and each of its records; returns whether the member continues."""
Configs = SAEConfig | Mapping[str, Any]
_Ready = dict[tuple[int, int], tuple[RowSource, IndexedRows]]
"""Checked training and validation rows, by the ids of the arguments they were made from."""


def fit_many(
    sae_configs: Configs | Sequence[Configs],
    train: GivenRows | Splits | Sequence[Tensor | IndexedRows | Splits],
    training_config: TrainingConfig | Mapping[str, Any] | Sequence[Any] | None = None,
    *,
    validation: GivenRows | Sequence[Tensor | IndexedRows] | None = None,
    seeds: int | Sequence[int] = 0,
    device: str = "cpu",
    keep: Keep | None = None,
    max_seconds: float | None = None,
    pack: bool | None = None,
    progress: bool = True,
) -> list[Fit]:
    """Train N SAEs, the members, together; returns their results in the order of the arguments.

    Each argument is one value for all members or a list with one value for each. Configs are those
    of ``raysae.fit``. Rows ``[rows, d_in]`` are tensors, sources or sites of a store; an iterator,
    which can be read once, works with ``raysae.fit`` only. Every member ends as if it were trained
    alone. With ``pack`` (None: on GPUs only), TopK and BatchTopK SAEs of one shape are one packed
    program.

    A member stops early, without effect on the others, and ``Fit.stopped`` says why, when

    - its loss is no longer finite (its SAE is that of the step before),
    - none of its latents fires at an evaluation,
    - it has trained, and waited for rows, for more than ``max_seconds`` seconds, or
    - ``keep(number, record)`` returns false after an evaluation.

    Raises ValueError, before any training, on configs or rows that cannot train. An error in
    reading the rows, or too little memory, ends the whole call; the results of the members that had
    ended before are in the error's ``fits``, in their order, with None for the others.
    """
    device = checked_device(device)
    if max_seconds is not None and not isinstance(max_seconds, int | float):
        raise ValueError(f"max_seconds is {max_seconds!r}; it must be a number, or None")
    members = _members(sae_configs, train, training_config, validation, seeds, device)
    numbers = {member: number for number, member in enumerate(members)}
    rules = StopRules(
        degenerate=True,
        keep=keep and (lambda member, record: keep(numbers[member], record)),
    )
    for member in members:
        member.budget = Budget(max_seconds, [member])
    fits: dict[Member, Fit] = {}
    with _bar(members, progress) as advance:
        ensemble = Ensemble(
            members,
            device,
            pack=pack,
            rules=rules,
            on_begin=_told_once(numbers, progress),
            after_batch=advance,
            on_end=_raise_reading_errors,
        )
        with _kept(members, fits):
            for ended in ensemble.groups():
                fits |= {member: _fit(member) for member in ended}
    return [fits[member] for member in members]


@contextmanager
def _kept(members: list[Member], fits: dict[Member, Fit]) -> Iterator[None]:
    """Give what the block raises the results so far: the attribute ``fits``."""
    try:
        yield
    except Exception as error:
        vars(error)["fits"] = [fits.get(member) for member in members]
        if fits:
            error.add_note(f"{len(fits)} of {len(members)} SAEs had ended; they are in error.fits")
        raise


def _told_once(numbers: dict[Member, int], progress: bool) -> Callable[[Member], None]:
    """A function that tells what is unusual about the rows of a member, once for the same rows."""
    told = set()

    def tell(member: Member) -> None:
        if id(member.rows) not in told:
            told.add(id(member.rows))
            tell_health(member.trainer, progress, f"SAE {numbers[member]}: train")

    return tell


def _raise_reading_errors(member: Member) -> None:
    """A loss that is not finite ends one member; other errors, as of reading, end the call."""
    if member.failure is not None and not isinstance(member.failure, NonFiniteLossError):
        raise member.failure


def _fit(member: Member) -> Fit:
    trainer = member.trainer
    member.release()  # frees memory for the next member
    stopped = str(member.failure) if member.failure is not None else member.stopped
    return outcome(trainer, member.history, stopped=stopped)


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
    """The members, from arguments that are one value for all or a list with one for each."""
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
        raise ValueError("there is nothing to train: a list is empty")
    columns = [value if name in lengths else [value] * count for name, value in given.items()]
    ready: _Ready = {}
    return [
        _member(number, ready, device, *row)
        for number, row in enumerate(zip(*columns, strict=True))
    ]


def _member(
    number: int, ready: _Ready, device: str, config: Any, train: Any, training: Any,
    validation: Any, seed: int,
) -> Member:  # fmt: skip
    try:
        checked, seed = checked_training(training or {}), checked_seed(seed)
        key = id(train), id(validation)
        if key not in ready:
            splits = checked_splits(train, validation, checked)
            ready[key] = splits[0].to(device), splits[1].to(device)
        rows, measured = ready[key]
        same_d_in(rows, measured)
        checked_sae = checked_config(config)
    except ValueError as error:
        raise type(error)(f"SAE {number}: {error}") from None
    truth = train.truth if isinstance(train, Splits) else None
    return Member(checked_sae, checked, rows, measured, seed, truth)
