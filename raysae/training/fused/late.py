"""A number of the device that the host reads two steps late, so that it never waits for the last step."""

from collections import deque

import torch
from torch import Tensor

LAG = 2
"""Steps from the one that makes a number to the one that reads it."""


class LateNumber:
    """Notes a number after each step; gives what was noted LAG steps before."""

    def __init__(self) -> None:
        self._noted: deque[tuple[Tensor, torch.cuda.Event | None]] = deque()

    def note(self, number: Tensor) -> None:
        """The step that was launched last makes ``number``, a scalar whose place later steps reuse."""
        if not number.is_cuda:
            self._noted.append((number.clone(), None))
            return
        there = torch.empty((), dtype=number.dtype, pin_memory=True)
        there.copy_(number, non_blocking=True)
        self._noted.append((there, torch.cuda.current_stream(number.device).record_event()))

    def read(self) -> int | None:
        """What was noted LAG steps ago; None where so many steps were not made yet."""
        if len(self._noted) < LAG:
            return None
        number, event = self._noted.popleft()
        if event is not None:
            event.synchronize()
        return int(number)
