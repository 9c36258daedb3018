"""What a process remembers of the work that it does: forgotten when it is given other work."""

from collections.abc import Callable
from functools import lru_cache
from typing import Any, TypeVar, cast

Function = TypeVar("Function", bound=Callable[..., Any])

_forget: list[Callable[[], None]] = []


def remembered(maxsize: int) -> Callable[[Function], Function]:
    """``lru_cache(maxsize)`` for what is read from files: these may have been written again since, when
    the process begins other work (see ``forget_all``)."""

    def decorate(function: Function) -> Function:
        cached = lru_cache(maxsize)(function)
        _forget.append(cached.cache_clear)
        return cast(Function, cached)

    return decorate


def forget_all() -> None:
    """Forget everything that was remembered in this process."""
    for forget in _forget:
        forget()
