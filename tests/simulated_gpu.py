"""A GPU that is not there: the interface of ``torch.cuda`` that tells its memory, simulated."""

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


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
    fraction: float = 1.0
    """The part of its memory that this process may take."""
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
        patch.setattr(
            torch.cuda, "get_per_process_memory_fraction", lambda device=None: self.fraction
        )
        patch.setattr(
            torch.cuda, "set_per_process_memory_fraction",
            lambda fraction, device=None: setattr(self, "fraction", fraction),
        )  # fmt: skip
        return self


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of the tensors that were made while it is active and are alive."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._known = set[int]()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        result = func(*args, **kwargs or {})
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self._count(tensor.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self._known:
            return
        size = storage.nbytes()
        self._known.add(key)
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size
