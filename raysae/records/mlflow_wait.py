"""How long a run waits at its end for MLflow: while records are written, and a few seconds more.

The thread that writes may hang in a call: a database that another process holds locked, a server that
takes a connection and never answers, a file system that hangs. So the wait is bounded from outside, by
when the last call that writes has ended.
"""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from raysae.records.mlflow_session import TransactionClient, one_transaction

LAST_CALL_SECONDS = 5.0
"""Seconds for a call that has begun before the run ended, at least."""
STUCK_SECONDS = 30.0
"""Seconds for work that may take long without any news: to import MLflow, to send a file."""
LONGEST_WAIT_SECONDS = 300.0
"""Seconds after the end of the run for which records are waited for, even while some are written."""
SHORTEST_WAIT_SECONDS, WAIT_SHARE = 10.0, 0.03
"""For which a server is waited for, that may be slow: some seconds, or a part of the run's own time."""
WRITES = (
    "create_experiment", "create_logged_model", "create_run", "finalize_logged_model", "log_artifact",
    "log_artifacts", "log_batch", "log_inputs", "log_outputs", "set_experiment_tag", "set_tag",
    "set_terminated",
)  # fmt: skip
"""The calls that write. A database that is locked for writing only still answers the others."""
SENDS = ("log_artifact", "log_artifacts")
"""The calls that send files; their first argument is a run's id."""


class Closed(Exception):
    """The run has ended, and nobody waits for its records any more."""


class Wait:
    """Knows when a record was last written, and whether the end of the run still waits.

    ``server`` says that the records go to a server, which is not waited for long.
    """

    def __init__(self, server: bool = False) -> None:
        self._server, self._began = server, time.monotonic()
        self._moved = self._began
        self._ended: float | None = None
        self._slow = 0
        self._failing = 0.0
        """When the first of the tries failed that have all failed since something was written; else 0."""
        self._lock = threading.Lock()
        self._closed, self._end = threading.Event(), threading.Event()

    @property
    def closed(self) -> bool:
        """Whether nobody waits any more."""
        return self._closed.is_set()

    @property
    def ended(self) -> bool:
        """Whether the run has ended."""
        return self._end.is_set()

    def moved(self) -> None:
        """Note that something was written."""
        self._moved = time.monotonic()
        with self._lock:
            self._failing = 0.0

    @contextmanager
    def slow(self) -> Iterator[None]:
        """Inside the block there may be no news for some time."""
        self._count_slow(1)
        try:
            yield
            self.moved()  # what failed is no news
        finally:
            self._count_slow(-1)

    def _count_slow(self, more: int) -> None:
        with self._lock:
            self._slow += more

    def end(self) -> None:
        """Note that the run has ended."""
        self._ended = time.monotonic()
        self._end.set()

    def pause(self, seconds: float) -> None:
        """Sleep; the end of the run cuts the sleep short."""
        if self._end.is_set():
            time.sleep(seconds)
        else:
            self._end.wait(seconds)

    def for_threads(
        self, threads: Sequence[threading.Thread], seconds: float, stuck: float
    ) -> bool:
        """Wait until the threads end; at most ``seconds`` without news, ``stuck`` where work is slow.

        Returns whether they have ended. From then on, no further call is made.
        """
        longest = max(seconds, self._longest())
        while alive := [one for one in threads if one.is_alive()]:
            limit = stuck if self._slow else max(seconds, LAST_CALL_SECONDS)
            if self._idle() >= limit or self._since_end() >= longest:
                self._closed.set()
                return False
            alive[0].join(0.2)
        return True

    def is_over(self, tried: float, seconds: float) -> bool:
        """Note that a try which began at ``tried`` has failed; whether it was the last one.

        It was when it began after the end of the run, and tries have failed for ``seconds`` already,
        before the end or after it.
        """
        now = time.monotonic()
        with self._lock:
            self._failing = self._failing or now
            away = now - self._failing
        return self._ended is not None and tried >= self._ended and away > seconds

    def _longest(self) -> float:
        """Seconds for which records are waited for, even while some are written."""
        if not self._server:
            return LONGEST_WAIT_SECONDS
        took = (self._ended or time.monotonic()) - self._began
        return min(max(SHORTEST_WAIT_SECONDS, WAIT_SHARE * took), LONGEST_WAIT_SECONDS)

    def _idle(self) -> float:
        """Seconds since something was last written, of those after the end of the run."""
        return time.monotonic() - max(self._moved, self._ended or 0.0)

    def _since_end(self) -> float:
        return 0.0 if self._ended is None else time.monotonic() - self._ended


class Calls:
    """An MLflow client whose calls are noted; once nobody waits, they raise Closed."""

    def __init__(self, client: Any, wait: Wait):
        self._client, self._wait = client, wait

    @contextmanager
    def one_transaction(self) -> Iterator[TransactionClient | None]:
        """See ``mlflow_session.one_transaction``; noted as one call."""
        if self._wait.closed:
            raise Closed
        with one_transaction(self._client) as together:
            yield together
        self._wait.moved()

    def __getattr__(self, name: str) -> Callable[..., Any]:
        call = getattr(self._client, name)

        def noted(*args: Any, **options: Any) -> Any:
            if name in SENDS:
                self.get_run(args[0])  # a store that does not answer is found out at once
                with self._wait.slow():
                    return call(*args, **options)
            if self._wait.closed:
                raise Closed
            answer = call(*args, **options)
            if name in WRITES:
                self._wait.moved()
            return answer

        return noted
