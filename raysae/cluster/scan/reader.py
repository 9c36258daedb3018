"""The reader's side of a scan, in the process that trains: pieces in order, and windows read ahead."""

import os
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from raysae.cluster.scan.service import Scan
from raysae.errors import UserError
from raysae.training.rows import Rows
from raysae.training.windows import Window

TAKE_SECONDS = 20.0
"""Seconds that one call to the service waits for a piece; then it is asked again."""
LOST_SECONDS = 300.0
"""Seconds for which a reader begins anew without a piece, after the service or a block was lost."""
AGAIN_SECONDS = 0.5
"""Seconds between two such beginnings: the service takes some to start again."""
PROCESS = f"{os.getpid()}-{uuid.uuid4().hex}"


class Reader:
    """Takes the pieces of a scan in order, from piece ``number`` on."""

    def __init__(self, service: Any, scan: Scan, number: int):
        self.service, self.scan, self.number = service, scan, number
        self.needed = number
        """The first piece that is still in use."""
        self.urgent = True
        """Whether the process waits for the next piece, and does not only read ahead."""
        self.awaited = False
        """Whether nothing of what was read is left."""
        self.stopped = False
        """Whether nobody wants its pieces any more."""
        self.name, self._running = uuid.uuid4().hex, ""
        self._lost: float | None = None
        """When the service or a block was lost, until the next piece is there."""

    def next(self) -> Any:
        """The next piece's block. Raises UserError when the scan cannot read on, and RuntimeError when it
        fails otherwise or has no further piece."""
        while True:
            block = self._taken()
            if block is not None:
                self.number, self._lost = self.number + 1, None
                return block

    def hurry(self, waits: bool = True) -> None:
        """Say that the process has begun to wait for the piece that is being read, or no longer does."""
        self.urgent = waits
        if self._running:
            self.service.hurry.remote(self._running, self.name, waits)

    def pause(self, number: int) -> None:
        """Go on later, from piece ``number`` on. It is kept for this reader for a minute."""
        self.number = self.needed = number
        if self._running:
            self.service.pause.remote(self._running, self.name, number)

    def leave(self) -> None:
        """Let go of the scan."""
        if self._running:
            self.service.leave.remote(self._running, self.name)

    def stop(self) -> None:
        """Let a ``next`` that waits in another thread end: nobody wants its piece any more, and it may be
        held back until someone else goes on."""
        self.stopped = True
        self.leave()

    def _taken(self) -> Any:
        """The next block; None when it must be asked for again."""
        import ray

        if self.stopped:
            raise RuntimeError(f"piece {self.number} of the scan is not wanted any more")
        try:
            if not self._running:
                self._join()
            call = self._running, self.name, self.number, self.needed, TAKE_SECONDS, self.urgent
            answer = ray.get(self.service.take.remote(*call))
            if answer.state == "piece":
                return ray.get(answer.piece)
        except (ray.exceptions.ObjectLostError, ray.exceptions.ActorUnavailableError) as error:
            self._begin_again(error)
            return None
        if answer.state == "end":
            raise RuntimeError(f"the scan ended before its piece {self.number}")
        if answer.state == "failed":
            raise (UserError if answer.refused else RuntimeError)(answer.reason)
        if answer.state == "detached":
            self._running = ""
        return None

    def _join(self) -> None:
        import ray

        actor = ray.get_runtime_context().get_actor_id() or ""
        joined = self.scan, self.name, self.number, PROCESS, actor
        self._running = ray.get(self.service.join.remote(*joined))

    def _begin_again(self, error: Exception) -> None:
        now = time.monotonic()
        self._lost = now if self._lost is None else self._lost
        if now - self._lost > LOST_SECONDS:
            raise RuntimeError(f"the scan gave nothing for {LOST_SECONDS:g} s: {error}")
        time.sleep(AGAIN_SECONDS)
        self._running = ""


@contextmanager
def reading(service: Any, scan: Scan, number: int = 0) -> Iterator[Reader]:
    """A reader of ``scan`` from piece ``number`` on, which lets go of it at the end of the block."""
    reader = Reader(service, scan, number)
    try:
        yield reader
    finally:
        reader.leave()


def arrived(
    reader: Reader,
    order: Iterator[Window],
    fetch: Callable[[Reader, Window, Window | None], Rows],
    ready: dict[int, Rows],
    patient: bool = False,
) -> Iterator[Window]:
    """Yield each window of ``order`` once its rows are in ``ready``, while the next one is read ahead.

    ``fetch(reader, window, used)`` reads a window's rows while ``used`` is in use. ``patient``: whether
    the process has more to do than to wait for them, and hurries the reader itself when it has not.
    """
    window = next(order, None)
    if window is None:
        return
    reader.urgent = not patient
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(fetch, reader, window, None)
        try:
            while window is not None:
                reader.awaited = True
                if not coming.done() and not patient:
                    reader.hurry()
                rows = coming.result()
                reader.awaited = False
                ready.clear()
                ready[window.start] = rows
                del rows
                following = next(order, None)
                if following is not None:
                    reader.urgent = False
                    coming = pool.submit(fetch, reader, following, window)
                yield window
                window = following
        finally:
            if not coming.done():  # reading ends early
                reader.stop()
