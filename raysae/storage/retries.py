"""Requests to a storage that may fail for a while: asked again with growing waits, up to a limit."""

import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

from raysae.errors import UserError

Value = TypeVar("Value")

WAITS = (1.0, 3.0, 8.0, 18.0)
"""Seconds between the tries of a request: five tries in half a minute."""
ATTEMPT_SECONDS = 60.0
"""Seconds that one try may take, where the file system has no limit of its own."""
FINAL = (PermissionError, IsADirectoryError, NotADirectoryError, MemoryError)
"""Errors that another try does not mend."""


class StorageError(Exception):
    """A request failed at every try; the message says how the last one did."""


def retried(function: Callable[[], Value], look: Callable[[], None] = lambda: None) -> Value:
    """The function's result; it is called again, after a wait, when it raises an error.

    ``look`` is called after each error; it raises UserError when another try is of no use. A UserError
    is raised as it is, at once. Raises StorageError after the last try.
    """
    for wait in (*WAITS, None):
        try:
            return function()
        except UserError:
            raise
        except Exception as error:  # a library for a storage has errors of its own
            look()
            if wait is None or isinstance(error, FINAL):
                tries = (
                    "" if isinstance(error, FINAL) else f", at the last of {len(WAITS) + 1} tries"
                )
                raise StorageError(f"{said(error)}{tries}") from error
        time.sleep(wait)
    raise AssertionError("the last try returns or raises")


def within(seconds: float, function: Callable[..., Value], *arguments: Any) -> Value:
    """The function's result, computed in a thread that is left behind when it takes too long.

    Raises what the function raises, and TimeoutError.
    """
    outcome: list[Any] = []

    def run() -> None:
        try:
            outcome.append((function(*arguments), None))
        except BaseException as error:
            outcome.append((None, error))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if not outcome:
        raise TimeoutError(f"no answer within {seconds:g} s")
    value, error = outcome[0]
    if error is not None:
        raise error
    return value


def said(error: BaseException) -> str:
    """The first line of an error; its class when it says nothing."""
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__
