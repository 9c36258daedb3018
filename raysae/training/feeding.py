"""From a stream of rows to batches on the device, with the time that training had to wait for them.

Rows that fit on the device stay there (``RowSource.to``). Others are copied from pinned memory while the
batch before them is trained on. Shapes: B batch, D d_in.
"""

import time
from collections.abc import Iterator

import torch
from torch import Tensor

from raysae.training.rows import Stream, StreamPosition


class Feed:
    """The batches of ``stream`` on ``device``; ``waited`` counts the seconds until each was there."""

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
        """The same, one batch ahead, on a CUDA stream of its own."""
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
        batch_BD.record_stream(current)  # its memory is not reused before training is done with it
        return batch_BD, position
