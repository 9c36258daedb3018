"""Threads that do jobs side by side: those of one key in order, those of unlike keys at the same time."""

import queue
import threading
import zlib
from collections.abc import Callable, Sequence
from typing import Any

Job = Callable[[Any], None]


class Lanes:
    """``number`` threads, and ``do``, which each of them calls with one job after another.

    ``do`` must not raise. The threads end with the process, whatever they wait for.
    """

    def __init__(self, name: str, number: int, do: Callable[[Job], None]):
        self._do = do
        self._queues: list[queue.Queue[Job | _Mark | None]] = [queue.Queue() for _ in range(number)]
        self._lock, self._left = threading.Lock(), 0
        self.threads = [
            threading.Thread(target=self._work, args=(one,), name=name, daemon=True)
            for one in self._queues
        ]
        for thread in self.threads:
            thread.start()

    def put(self, key: str, job: Job) -> None:
        """Have a job done after those of the same key."""
        self._count(1)
        self._queues[zlib.crc32(key.encode()) % len(self._queues)].put(job)

    def put_last(self, job: Job) -> None:
        """Have a job done after all that were put before it."""
        self._count(1)
        mark = _Mark(threading.Barrier(len(self._queues)))
        first, *others = self._queues
        for one in (first, *others):
            one.put(mark)
        first.put(job)

    def close(self) -> None:
        """Let each thread end after its last job."""
        for one in self._queues:
            one.put(None)

    @property
    def left(self) -> int:
        """Jobs that are not done."""
        return self._left

    def _work(self, waiting: "queue.Queue[Job | _Mark | None]") -> None:
        while (job := waiting.get()) is not None:
            if isinstance(job, _Mark):
                job.meet.wait()
            else:
                self._do(job)
                self._count(-1)

    def _count(self, more: int) -> None:
        with self._lock:
            self._left += more


class _Mark:
    """Where all threads wait for each other."""

    def __init__(self, meet: threading.Barrier):
        self.meet = meet


def side_by_side(jobs: Sequence[Callable[[], None]], most: int) -> None:
    """Do the jobs in threads, at most ``most`` at once. When all have ended, raises the first error."""
    waiting, errors, lock = iter(jobs), list[BaseException](), threading.Lock()

    def work() -> None:
        while True:
            with lock:
                job = next(waiting, None)
            if job is None:
                return
            try:
                job()
            except BaseException as error:
                errors.append(error)

    threads = [threading.Thread(target=work, daemon=True) for _ in range(min(most, len(jobs)))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
