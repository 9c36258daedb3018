"""A thread that writes a shard's files while the transformer reads the next shard."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait

import torch


class WritingThread:
    """Does one piece of work after another, the next while its caller goes on.

    At most one is at work, and none waits behind it: its rows would take memory.
    """

    def __init__(self) -> None:
        threads = torch.get_num_threads()  # with as many, sums have the same bits
        self._pool = ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(threads,))
        self._last: Future[None] | None = None

    def begin(self, work: Callable[[], None]) -> Callable[[], None]:
        """Begin ``work`` when the work before has ended, well or not. Returns what waits for its end, and
        raises what it raises."""
        if self._last is not None:
            wait([self._last])
        self._last = self._pool.submit(work)
        return self._last.result


def writes_beside(device: str) -> bool:
    """Whether a thread is worth its memory: a GPU computes meanwhile. On CPUs both need the same cores,
    and a process ends with its item."""
    return device != "cpu"
