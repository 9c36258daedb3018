"""The batches of a stream, copied to the device; measures how long training waits for them.

Rows that fit on the device stay there (``RowSource.to``). Other rows are copied from pinned memory
while training works on the batch before. Shapes: B batch, D d_in.
"""

import time
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, wait

import torch
from torch import Tensor

from raysae.training.rows import Stream, StreamPosition

AHEAD_BYTES = 2**20
"""Bytes of batches that are read ahead in one go, at most, or one batch."""
HURRY_SECONDS = 0.3
"""Seconds that a wait for rows may take before their source is told of it."""
Placed = Generator[tuple[Tensor, StreamPosition]]
"""Batches ``[batch, d_in]``, each with the position after it."""


class Feed:
    """Batches ``[batch, d_in]`` of ``stream`` on ``device``; ``waited``: seconds spent waiting."""

    def __init__(self, stream: Stream, device: str):
        self.stream, self.device = stream, torch.device(device)
        self.waited = 0.0

    def __iter__(self) -> Iterator[Tensor]:
        placed = self.placed()
        while True:
            started = time.perf_counter()
            following = next(placed, None)
            self.waited += time.perf_counter() - started
            if following is None:
                return
            batch_BD, self.stream.position = following
            yield batch_BD

    def placed(self) -> Placed:
        """The batches on the device, each with the position after it, which whoever takes it sets."""
        placed = self.stream.placed()
        return self._copied(placed) if self.device.type == "cuda" else placed

    def _copied(self, placed: Placed) -> Placed:
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


Read = tuple[Tensor, StreamPosition] | Exception | None
"""A batch with the position after it; what reading failed with; or None at the end."""


class ReadAhead:
    """The batches ``[batch, d_in]`` of a feed, read by a thread of ``pool`` while others train.

    The thread reads several at a time, so that threads seldom wait for each other; but none of a shuffle
    window after that of the first, as its rows may come late.
    """

    def __init__(self, feed: Feed, pool: Executor):
        self._feed, self._pool, self._placed = feed, pool, feed.placed()
        self._at_hand: deque[Read] = deque()
        feed.stream.source.read_patiently()
        self._coming = pool.submit(self._some)

    def __iter__(self) -> Iterator[Tensor]:
        return self

    def __next__(self) -> Tensor:
        if not self._at_hand:
            started = time.perf_counter()
            self._at_hand.extend(self._coming.result())
            self._feed.waited += time.perf_counter() - started
            if isinstance(self._at_hand[-1], tuple):
                self._coming = self._pool.submit(self._some)
        following = self._at_hand[0]
        if following is None:
            raise StopIteration
        if isinstance(following, Exception):
            raise following
        self._at_hand.popleft()
        batch_BD, self._feed.stream.position = following
        return batch_BD

    def close(self) -> None:
        """Let go of the rows, once what is being read is there."""
        self._at_hand.clear()
        self._coming.add_done_callback(lambda _: self._placed.close())

    @property
    def is_at_hand(self) -> bool:
        """Whether the next batch was taken from the thread already."""
        return bool(self._at_hand)

    @property
    def is_ready(self) -> bool:
        """Whether the next batch, or the end, is there."""
        return self.is_at_hand or self._coming.done()

    def _some(self) -> list[Read]:
        """The next batches, at least one; the last of all is followed by None, or by what went wrong."""
        read: list[Read] = []
        size = 0
        while size < AHEAD_BYTES:
            try:
                following = next(self._placed, None)
            except Exception as error:
                return [*read, error]
            read.append(following)
            if following is None:
                break
            batch_BD, after = following
            size += batch_BD.nbytes
            if self._ends_window(after, len(batch_BD)):
                break
        return read

    def _ends_window(self, after: StreamPosition, batch: int) -> bool:
        """Whether the next batch of so many rows needs rows of another shuffle window."""
        rows = after.rows % self._feed.stream.shuffle_rows
        return rows == 0 or rows + batch > self._feed.stream.shuffle_rows


def wait_for_one(feeds: Sequence[ReadAhead]) -> None:
    """Wait until the next batch of a feed is there; say so where that takes long."""
    if any(feed.is_ready for feed in feeds):
        return
    coming = [feed._coming for feed in feeds]
    if wait(coming, HURRY_SECONDS, FIRST_COMPLETED).done:
        return
    sources = [feed._feed.stream.source for feed in feeds]
    for source in sources:
        source.hurry(True)
    wait(coming, return_when=FIRST_COMPLETED)
    for source in sources:
        source.hurry(False)
