"""Captured rows on their way to the host: on a GPU they are copied while the next batch is computed.

Shapes: N rows, D d_in.
"""

from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from raysae.activations.casting import must_look, to_storage
from raysae.activations.schema import torch_dtype
from raysae.sites import Site

SiteTensors = Mapping[Site, Tensor]
"""Rows ``[N, D]`` of one batch by site."""


class HostCopies:
    """Gives the rows of each batch in the store's ``dtype`` and on the host, at once: the rows are there.

    ``take`` and ``rest`` raise UserError as ``to_storage`` does.
    """

    def __init__(self, dtype: str):
        self.dtype = dtype

    def take(self, rows: SiteTensors) -> list[SiteTensors]:
        """Begin to copy a batch; returns the batches that have arrived, in order."""
        return [{site: to_storage(rows_ND, self.dtype, site) for site, rows_ND in rows.items()}]

    def rest(self) -> list[SiteTensors]:
        """The batches that were still on their way."""
        return []


class Lane:
    """What copying needs of a GPU: a stream beside the one that computes, and pinned memory."""

    def __init__(self, device: torch.device):
        self.device, self.stream = device, torch.cuda.Stream(device)

    def pinned(self, size: int) -> Tensor:
        """So many bytes of memory that the GPU copies to by itself."""
        return torch.empty(size, dtype=torch.uint8, pin_memory=True)

    def copying(self) -> AbstractContextManager[Any]:
        """Within the block, work goes to the other stream, after all that was launched before."""
        self.stream.wait_stream(torch.cuda.current_stream(self.device))
        return torch.cuda.stream(self.stream)

    def recorded(self) -> Any:
        """An event of the other stream, with ``synchronize()``: what was launched there is done."""
        return self.stream.record_event()


@dataclass(frozen=True)
class _Underway:
    """A batch that is being copied."""

    rows: SiteTensors
    """As they were captured, for a closer look; they also keep the memory of what is copied."""
    stored: Sequence[Tensor]
    """In the store's dtype on the GPU."""
    arriving: Sequence[Tensor]
    """Their copies in pinned memory, in the same order."""
    looks: Tensor
    """Which of the sites need a closer look, in pinned memory."""
    copied: Any
    """The event after which all is there."""


class SideCopies(HostCopies):
    """The same while the GPU computes: all sites of a batch are copied on another stream to one block of
    pinned memory, and are given when the next batch has been launched. Two blocks take turns.

    The host waits for a batch before the last one alone, never for the last.
    """

    def __init__(self, dtype: str, lane: Lane):
        super().__init__(dtype)
        self.lane = lane
        self._blocks = [torch.empty(0, dtype=torch.uint8)] * 2
        self._underway: deque[_Underway] = deque()
        self._taken = 0

    def take(self, rows: SiteTensors) -> list[SiteTensors]:
        """See ``HostCopies.take``."""
        stored = [rows_ND.to(torch_dtype(self.dtype)).contiguous() for rows_ND in rows.values()]
        looks = torch.stack([must_look(rows_ND, self.dtype) for rows_ND in rows.values()])
        looks = looks.to(torch.uint8)
        block = self._next_block(sum(one.nbytes for one in stored) + looks.nbytes)
        *arriving, arriving_looks = _parts(block, [*stored, looks])
        with self.lane.copying():
            for here, there in zip([*arriving, arriving_looks], [*stored, looks], strict=True):
                here.copy_(there, non_blocking=True)
        self._underway.append(
            _Underway(rows, [*stored, looks], arriving, arriving_looks, self.lane.recorded())
        )
        return [self._arrived()] if len(self._underway) == len(self._blocks) else []

    def rest(self) -> list[SiteTensors]:
        """See ``HostCopies.rest``."""
        return [self._arrived() for _ in range(len(self._underway))]

    def _next_block(self, size: int) -> Tensor:
        """The block whose rows were given to the caller, with room for ``size`` bytes."""
        turn = self._taken % len(self._blocks)
        self._taken += 1
        if len(self._blocks[turn]) < size:
            self._blocks[turn] = self.lane.pinned(size)
        return self._blocks[turn]

    def _arrived(self) -> SiteTensors:
        """The batch that was begun first, in memory of its own."""
        one = self._underway.popleft()
        one.copied.synchronize()
        looks = one.looks.tolist()
        return {
            site: to_storage(rows_ND, self.dtype, site).cpu() if look else here.clone()
            for (site, rows_ND), here, look in zip(
                one.rows.items(), one.arriving, looks, strict=True
            )
        }


def _parts(block: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """Parts of a block of bytes, one after another, each of one tensor's shape and dtype."""
    parts, at = [], 0
    for one in like:
        parts.append(block[at : at + one.nbytes].view(one.dtype).view(one.shape))
        at += one.nbytes
    return parts


def host_copies(dtype: str, device: torch.device) -> HostCopies:
    """What brings rows from ``device`` to the host."""
    return SideCopies(dtype, Lane(device)) if device.type == "cuda" else HostCopies(dtype)


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the host on ``device``; the host does not wait for what a GPU does."""
    if device.type != "cuda" or tensor.is_cuda:
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
