"""The batches of a stream, copied to the device; measures how long training waits for them.

Rows that fit on the device stay there (``RowSource.to``). Other rows are copied from pinned memory
while training works on the batch before. Shapes: B batch, D d_in.
"""

import time
from collections.abc import Iterator

import torch
from torch import Tensor

from raysae.training.rows import Stream, StreamPosition


class Feed:
    """Batches ``[batch, d_in]`` of ``stream`` on ``device``; ``waited``: seconds spent waiting."""

    def __init__(self, stream: Stream, device: str):
        self.stream, self.device = stream, torch.device(device)
        self.waited = 0.0

    def __iter__(self) -> Iterator[Tensor]:
        placed = iter(self.stream.placed())
        if self.device.type == "cuda":
            placed = self._copied(placed)
        while True:
            started = time.perf_counter()
            following = next(placed, None)
            self.waited += time.perf_counter() - started
            if following is None:
                return
            batch_BD, self.stream.position = following
            yield batch_BD

    def _copied(
        self, placed: Iterator[tuple[Tensor, StreamPosition]]
    ) -> Iterator[tuple[Tensor, StreamPosition]]:
        """The same batches, copied one ahead of training on a separate CUDA stream."""
        copying = torch.cuda.Stream(self.device)
        ahead: tuple[Tensor, StreamPosition, torch.cuda.Event] | None = None
        for batch_BD, position in placed:
            if batch_BD.is_cuda:
                yield batch_BD, position
                continue
            with torch.cuda.stream(copying):
                on_device_BD = batch_BD.pin_memory().to(self.device, non_blocking=True)
                copied = copying.record_event()
            if ahead is not None:
                yield self._arrived(*ahead)
            ahead = on_device_BD, position, copied
        if ahead is not None:
            yield self._arrived(*ahead)

    def _arrived(
        self, batch_BD: Tensor, position: StreamPosition, copied: torch.cuda.Event
    ) -> tuple[Tensor, StreamPosition]:
        current = torch.cuda.current_stream(self.device)
        current.wait_event(copied)
        batch_BD.record_stream(current)  # its memory is not reused while training still needs it
        return batch_BD, position
