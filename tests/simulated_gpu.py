"""A GPU that is not there: the interface of ``torch.cuda`` that tells its memory, simulated."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest
import torch


@dataclass
class SimulatedGPU:
    """The memory of one GPU, in bytes, as the driver and torch's allocator tell it."""

    total: int
    others: int = 0
    """What other processes and the context hold."""
    allocated: int = 0
    """What this process's tensors take."""
    cached: int = 0
    """What torch's allocator holds beside them, for tensors to come."""
    emptied: int = 0
    """How often the cache was given back."""
    entered: list[str] = field(default_factory=list)
    """The devices that were made current, in order."""

    def empty_cache(self) -> None:
        self.cached, self.emptied = 0, self.emptied + 1

    def free(self) -> int:
        """What the driver calls free."""
        return self.total - self.others - self.allocated - self.cached

    @contextmanager
    def current(self, device: object) -> Iterator[None]:
        """Make a device current while the block runs."""
        self.entered.append(str(device))
        yield

    def install(self, patch: pytest.MonkeyPatch) -> "SimulatedGPU":
        """Put it in the place of torch's functions; returns itself."""
        patch.setattr(torch.cuda, "mem_get_info", lambda device=None: (self.free(), self.total))
        patch.setattr(torch.cuda, "memory_allocated", lambda device=None: self.allocated)
        patch.setattr(
            torch.cuda, "memory_reserved", lambda device=None: self.allocated + self.cached
        )
        patch.setattr(torch.cuda, "empty_cache", self.empty_cache)
        patch.setattr(torch.cuda, "device", self.current)
        return self
