"""Rows in memory on a device: one copy a process for all who train on them, where it fits."""

from collections.abc import Callable
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


def placed(rows: "Rows", device: str, make: "Callable[[list[Tensor], bool], Rows]") -> "Rows":
    """``rows`` on ``device``: the copy that somebody has there, or one that ``make`` makes of blocks.

    The rows themselves where they are there already, or would take more than DEVICE_SHARE of a GPU's
    free memory.
    """
    places = _copies.setdefault(rows, {})
    known = places[device]() if device in places else None
    if known is not None:
        return known
    if device.startswith("cuda") and rows.nbytes > DEVICE_SHARE * (free_bytes(device) or 0):
        return rows
    blocks = [block.to(device) for block in rows.blocks]
    there = all(new is old for new, old in zip(blocks, rows.blocks, strict=True))
    copied = rows if there else make(blocks, rows.sequential)
    places[device] = ref(copied)
    return copied
