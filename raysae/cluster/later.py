"""Values that are there later: of an item that a thread of its worker commits."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

Value = TypeVar("Value")


@dataclass(frozen=True)
class Later(Generic[Value]):
    """The value of an item that a thread is committing; ``result`` waits for it, and raises as ``do``."""

    result: Callable[[], Value]


def finished(value: Value | Later[Value]) -> Value:
    """What ``Worker.do`` has returned, once the item is committed. Raises as ``do``."""
    return value.result() if isinstance(value, Later) else value
