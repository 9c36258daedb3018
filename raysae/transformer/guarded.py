"""A function in a process of its own, with limits: for patterns and templates that others wrote.

A regular expression or a template can take years or all memory for one short text, and nothing stops it
in the process that runs it. Here it runs in a forked process, which is ended when a limit is passed.
"""

import contextlib
import os
import resource
import signal
import weakref
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from raysae.errors import UserError

SECONDS = 10.0
"""Seconds that one item may take, and one more for each million characters of it."""
MEMORY = 2 * 1024**3
"""Bytes that the process may take beyond those of the process that it is forked from."""
Item = tuple[Any, int]
"""What the function is called with, and its number of characters."""


class PastLimitError(Exception):
    """An item took more time or memory than it may; the text says which."""


class Guard:
    """Calls ``function`` in a process of its own, which is started when it is first needed."""

    def __init__(self, function: Callable[[Any], Any]):
        self.function = function
        self._connection: Connection | None = None
        self._end: Callable[[], Any] = lambda: None

    def results(self, items: Sequence[Item]) -> Iterator[Any]:
        """Yield what the function returns for each item, in order.

        Raises UserError as the function does, and PastLimitError when an item passes a limit.
        """
        if not items:
            return
        connection = self._started()
        waiting = len(items)
        try:
            connection.send([value for value, _ in items])
            for _, size in items:
                result = _received(connection, SECONDS + size / 1e6)
                waiting -= 1
                yield result
        except (EOFError, OSError):
            raise PastLimitError("ended the process that read it (out of memory?)") from None
        finally:
            if waiting:  # its answers would be taken for those to the next items
                self.close()

    def close(self) -> None:
        """End the process; the next call starts another."""
        self._end()
        self._connection = None

    def _started(self) -> Connection:
        if self._connection is None:
            here, there = Pipe()
            child = os.fork()
            if not child:
                here.close()
                _serve(there, self.function)
            there.close()
            self._connection = here
            self._end = weakref.finalize(self, _end, os.getpid(), child, here)
        return self._connection


def _received(connection: Connection, seconds: float) -> Any:
    if not connection.poll(seconds):
        raise PastLimitError(f"took more than {seconds:.0f} seconds")
    kind, value = connection.recv()
    if kind is None:
        return value
    raise kind(value)


def _end(parent: int, child: int, connection: Connection) -> None:
    if os.getpid() != parent:  # a copy of this object in another forked process
        return
    connection.close()
    with contextlib.suppress(ProcessLookupError):
        os.kill(child, signal.SIGKILL)
    with contextlib.suppress(ChildProcessError):
        os.waitpid(child, 0)


def _serve(connection: Connection, function: Callable[[Any], Any]) -> None:
    """Answer until the other end is closed, then leave without the other process's clean-up."""
    with contextlib.suppress(BaseException):
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the other process leaves, and closes its end
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        _limit_memory()
        while True:
            for item in connection.recv():
                connection.send(_outcome(function, item))
    os._exit(0)


def _outcome(function: Callable[[Any], Any], item: Any) -> tuple[type[Exception] | None, Any]:
    try:
        return None, function(item)
    except UserError as error:
        return UserError, str(error)
    except MemoryError:
        return PastLimitError, f"took more than {MEMORY / 1024**3:.0f} GiB of memory"
    except Exception as error:
        return PastLimitError, f"failed ({type(error).__name__}: {error})"


def _limit_memory() -> None:
    statm = Path("/proc/self/statm")
    if statm.is_file():
        taken = int(statm.read_text().split()[0]) * resource.getpagesize()
        most = resource.getrlimit(resource.RLIMIT_AS)[1]
        wanted = taken + MEMORY if most == resource.RLIM_INFINITY else min(taken + MEMORY, most)
        resource.setrlimit(resource.RLIMIT_AS, (wanted, most))
