"""``raysae.fit_many``: many SAEs in one process, without paying for each what all can share."""

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
from raysae.training.fitting import Fit, GivenRows, checked_splits, checked_training, outcome
from raysae.training.rows import IndexedRows, RowSource, Splits, same_d_in
from raysae.training.trainer import NonFiniteLossError

Keep = Callable[[int, dict[str, Any]], bool]
"""Gets a member's number and each of its records; whether the member continues."""
Configs = SAEConfig | Mapping[str, Any]
_Ready = dict[tuple[int, int], tuple[RowSource, IndexedRows]]
"""Rows that are ready to train on, by the identity of what was given."""


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
    """Train N SAEs together; their outcomes in the order of the arguments.

    Each argument is one for all members or a list with one for each: configs as in ``raysae.fit``, rows
    ``[rows, d_in]`` as tensors, sources or a store's sites (an iterator, which can be read once, is for
    ``raysae.fit``). Every member ends as if it were alone. With ``pack`` (None: on GPUs), TopK and
    BatchTopK SAEs of one shape are one program.

    A member leaves early, and the others do not notice, when its loss is no longer finite (its SAE is
    that of the step before), when no latent of it fires at an evaluation, when it has trained for
    ``max_seconds``, its waiting for rows included, or when ``keep(number, record)`` is false;
    ``Fit.stopped`` then says why.
    Raises ValueError, before any training, on configs or rows that cannot train.
    """
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
            after_batch=advance,
            on_end=_raise_what_ends_all,
        )
        for ended in ensemble.groups():
            fits |= {member: _fit(member) for member in ended}
    return [fits[member] for member in members]


def _raise_what_ends_all(member: Member) -> None:
    """A loss that is not finite ends a member; anything else, such as rows that cannot be read, the
    call."""
    if member.failure is not None and not isinstance(member.failure, NonFiniteLossError):
        raise member.failure


def _fit(member: Member) -> Fit:
    trainer = member.trainer
    member.release()  # its memory is the next member's
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
    ready: _Ready = {}
    return [
        _member(number, ready, device, *row)
        for number, row in enumerate(zip(*columns, strict=True))
    ]


def _member(
    number: int, ready: _Ready, device: str, config: Any, train: Any, training: Any,
    validation: Any, seed: int,
) -> Member:  # fmt: skip
    checked = checked_training(training or {})
    try:
        key = id(train), id(validation)
        if key not in ready:
            splits = checked_splits(train, validation, checked)
            ready[key] = splits[0].to(device), splits[1].to(device)
        rows, measured = ready[key]
        same_d_in(rows, measured)
        checked_sae = checked_config(config)
    except ValueError as error:
        raise ValueError(f"SAE {number}: {error}") from None
    truth = train.truth if isinstance(train, Splits) else None
    return Member(checked_sae, checked, rows, measured, seed, truth)
