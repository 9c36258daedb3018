"""The plan of an ensemble: groups of members that share batches or are one packed program."""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from raysae.sae.config import KConfig
from raysae.training import gpu
from raysae.training.config import TrainingConfig
from raysae.training.ensemble.members import Member
from raysae.training.iterator_rows import IteratorRows
from raysae.training.memory import free_bytes, packed_bytes
from raysae.training.packed import can_pack
from raysae.training.rows import Rows, RowSource

RESERVE = 0.1
"""The part of the free memory that packed programs leave free."""


@dataclass(frozen=True)
class Group:
    """Members that are trained together: on the same batches, or as one packed program."""

    members: list[Member]
    packed: bool = False

    def by_step(self) -> "list[Group]":
        """The active members in groups of those at the same step. All must have trainers."""
        active = [member for member in self.members if member.active]
        parts = _alike(active, [member.trainer.step for member in active])
        return [Group(part, self.packed) for part in parts]


def batch_settings(training: TrainingConfig) -> tuple[Hashable, ...]:
    """The settings that, with the rows and the seed, determine order and size of the batches."""
    size = training.epochs, training.tokens, training.batch_size
    return *size, training.shuffle_rows, training.sink_rows


def plan(
    members: Sequence[Member], device: str, pack: bool | None, *, side_by_side: bool
) -> list[Group]:
    """The groups in which ``members`` are trained.

    With ``pack`` (None: on GPUs only), members of one shape become packed programs if the device
    has enough memory: for all programs at once when groups are trained ``side_by_side``, else for
    one program at a time. Raises ValueError when more than one group needs rows that can be read
    once.
    """
    if pack is None:
        pack = torch.device(device).type == "cuda"
    programs, rest = _programs(members, device, side_by_side) if pack else ([], list(members))
    passing = [member for program in programs for member in program if member.rows.passing]
    if passing:  # all that are at the same rows at the same time, also those that cannot be packed
        passing = [member for member in members if member.rows.passing]
        programs = [program for program in programs if not program[0].rows.passing]
        programs += _alike(passing, [_sizes(member) for member in passing])
        rest = [member for member in rest if not member.rows.passing]
    groups = [Group(program, packed=True) for program in programs]
    groups += [Group(part) for part in _alike(rest, [batches_of(member) for member in rest])]
    once = [group.members[0].rows for group in groups]
    for rows in once:
        if isinstance(rows, IteratorRows) and sum(rows is other for other in once) > 1:
            raise ValueError("an iterator can be trained on once; make a new one")
    return groups


def _alike(members: Sequence[Member], keys: Sequence[Hashable]) -> list[list[Member]]:
    """The members in lists of equal keys, in their given order."""
    parts: dict[Hashable, list[Member]] = {}
    for member, key in zip(members, keys, strict=True):
        parts.setdefault(key, []).append(member)
    return list(parts.values())


def packs_of(members: Sequence[Member]) -> tuple[list[list[Member]], list[Member]]:
    """The members of each packed program, and the members that cannot be in one."""
    shapes = [_shape(member) for member in members]
    packable = [m for m, shape in zip(members, shapes, strict=True) if shape is not None]
    alike = _alike(packable, [shape for shape in shapes if shape is not None])
    return alike, [m for m, shape in zip(members, shapes, strict=True) if shape is None]


def _sizes(member: Member) -> tuple[Hashable, ...]:
    """A key that is equal for members whose batches have the same sizes, and are there at the same time,
    at every step."""
    rows, whole = member.rows, member.training.sink_rows == "keep"
    own: tuple[Hashable, ...] = (len(rows), rows.pace) if whole else (id(rows),)
    return *own, *batch_settings(member.training)


def batches_of(member: Member) -> tuple[Hashable, ...]:
    """A key that is equal for members that train on the same batches; defined only here."""
    return id(member.rows), member.seed, *batch_settings(member.training)


def _programs(
    members: Sequence[Member], device: str, side_by_side: bool
) -> tuple[list[list[Member]], list[Member]]:
    """The members of each packed program, and the members that are not packed."""
    alike, _ = packs_of(members)
    packable = [member for program in alike for member in program]
    known = free_bytes(device)
    free = math.inf if known is None else (1 - RESERVE) * known
    if side_by_side:
        packed = packable if sum(_bytes(program, device) for program in alike) <= free else []
        programs = alike if packed else []
    else:
        programs = [part for program in alike for part in _parts_that_fit(program, free, device)]
        packed = [member for program in programs for member in program]
    return programs, [member for member in members if member not in packed]


def _shape(member: Member) -> tuple[Any, ...] | None:
    """A key that is equal for members of one packed program; None when it cannot be packed.

    Rows that are not in memory, or not all of them, are fed: only members on the same batches can be one.
    Rows that come past are read for all, side by side.
    """
    rows, training, config = member.rows, member.training, member.config
    if not can_pack(config):
        return None
    batches: tuple[Hashable, ...] = batches_of(member)
    if rows.passing and training.sink_rows == "keep":
        batches = rows.d_in, *_sizes(member)
    elif isinstance(rows, Rows) and training.sink_rows == "keep":
        batches = rows.d_in, len(rows), rows.dtype
    same = (
        config.variant, config.d_sae, training.epochs, training.tokens, training.batch_size,
        training.precision, training.evaluations, training.compiled, training.frozen,
    )  # fmt: skip
    return *batches, *same


def _bytes(program: list[Member], device: str) -> int:
    """Memory of a packed program in bytes, with the rows that are not on the device yet."""
    total = _row_bytes(program, device)
    for member in program:
        config, training = member.config, member.training
        assert isinstance(config, KConfig)
        fast = training.compiled and gpu.launches(torch.device(device))
        total += packed_bytes(member.rows.d_in, config, training, fast)
    return total


def _row_bytes(program: list[Member], device: str) -> int:
    """Bytes of the rows to be copied to the device, once, and of their copy side by side."""
    train = _sources([member.rows for member in program])
    every = _sources([*train, *(member.validation for member in program)])
    there = torch.device(device).type
    copied = sum(rows.nbytes for rows in every if rows.blocks[0].device.type != there)
    in_one_block = len(train) == 1 and len(train[0].blocks) == 1
    return copied + (0 if in_one_block else sum(rows.nbytes for rows in train))


def _sources(every: Sequence[RowSource]) -> list[Rows]:
    """The different rows in memory."""
    return list({id(rows): rows for rows in every if isinstance(rows, Rows)}.values())


def _parts_that_fit(program: list[Member], free: float, device: str) -> list[list[Member]]:
    """The program in parts of at most ``free`` bytes each; none when a member does not fit alone."""
    if any(_bytes([member], device) > free for member in program):
        return []
    parts: list[list[Member]] = [[]]
    for member in program:
        if _bytes([*parts[-1], member], device) > free:
            parts.append([])
        parts[-1].append(member)
    return parts
