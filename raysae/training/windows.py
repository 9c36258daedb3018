"""The shuffle windows of an epoch: which rows are shuffled together, and in which order they are read.

Shapes: B batch.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class WindowOrder:
    """Which windows of ``size`` rows an epoch over ``rows`` rows has, and in which order."""

    rows: int
    size: int
    seed: int
    epoch: int
    sequential: bool = False
    """Whether the windows come in storage order; else in a random order."""
    first: int = 0
    """The place in this order of the window to begin with; those before it come at the end."""

    @property
    def mixed(self) -> int:
        """A number made of the seed and the epoch."""
        return self.seed * 1_000_003 + self.epoch

    def numbers(self) -> list[int]:
        """The windows' numbers in storage order, in the order in which they are read."""
        count = math.ceil(self.rows / self.size)
        in_order = list(range(max(count, 1)))
        if not self.sequential and count > 1:
            in_order = _permutation(count, self.mixed).tolist()
        return in_order[self.first :] + in_order[: self.first]

    def window(self, number: int) -> "Window":
        """The window with this number in storage order, its rows shuffled."""
        start = number * self.size
        length = min(self.size, self.rows - start)
        salt = self.mixed if self.size >= self.rows else self.mixed * 1_000_003 + number + 1
        return Window(start, _permutation(length, salt), length, self)


@dataclass(frozen=True)
class Window:
    """Consecutive rows that are shuffled together."""

    start: int
    order: Tensor
    """Row numbers within the window, in the order in which they are read."""
    rows: int
    """Number of rows in the window."""
    among: WindowOrder
    """The windows that it is one of."""


def windows(among: WindowOrder, taken: int = 0) -> Iterator[Window]:
    """The windows of an epoch in their order, without its first ``taken`` rows."""
    for number in among.numbers():
        length = min(among.size, among.rows - number * among.size)
        if taken >= length:
            taken -= length
            continue
        window = among.window(number)
        yield replace(window, order=window.order[taken:])
        taken = 0


def one_window(rows: int, seed: int, epoch: int) -> Window:
    """All ``rows`` rows as one window."""
    return WindowOrder(rows, rows, seed, epoch).window(0)


def pieces(order: Iterator[Window], batch_size: int) -> Iterator[tuple[Window, Tensor]]:
    """Each window with its row numbers ``[batch]``; a batch over two windows is two pieces."""
    over = 0
    for window in order:
        for index_B in (*window.order[:over][None], *window.order[over:].split(batch_size)):
            if len(index_B):
                yield window, index_B
        over = (over - len(window.order)) % batch_size


def _permutation(count: int, seed: int) -> Tensor:
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed % 2**63))
