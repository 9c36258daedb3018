"""Rows in memory on a device: one copy a process for all who train on them, where it fits."""

from collections.abc import Sequence
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary, ref

from torch import Tensor

from raysae.training.memory import free_bytes

if TYPE_CHECKING:
    from raysae.training.rows import Rows

DEVICE_SHARE = 0.5
"""The part of a GPU's free memory that rows may take."""
_copies: "WeakKeyDictionary[Rows, dict[str, ref[Rows]]]" = WeakKeyDictionary()
"""The copies of rows on other devices that are in use, by device."""


def known_copy(rows: "Rows", device: str) -> "Rows | None":
    """The copy of ``rows`` on ``device`` that somebody has; None when nobody has one."""
    found = _copies.get(rows, {}).get(device)
    return None if found is None else found()


def remember(rows: "Rows", device: str, copy: "Rows") -> None:
    """Let others have ``copy`` while somebody uses it."""
    _copies.setdefault(rows, {})[device] = ref(copy)


def blocks_on(blocks: Sequence[Tensor], device: str) -> list[Tensor]:
    """The blocks on ``device``; where they would take more than DEVICE_SHARE of a GPU's free memory,
    as they are."""
    size = sum(block.nbytes for block in blocks)
    if device.startswith("cuda") and size > DEVICE_SHARE * (free_bytes(device) or 0):
        return list(blocks)
    return [block.to(device) for block in blocks]
