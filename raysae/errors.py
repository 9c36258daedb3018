"""Errors meant for the person at the keyboard: printed as one message, never as a traceback."""

from raysae.printable import printable
from raysae.redaction import redacted


class UserError(ValueError):
    """Input that cannot be used: says what, where, what was found, what was expected, what to do.

    The commands print it and leave with exit code 2. Names in the message may come from files of others:
    what would steer a terminal is shown as an escape. Secrets in the message are hidden.
    """

    def __init__(self, message: object = "") -> None:
        super().__init__(printable(redacted(str(message)), lines=True))


class UnfinishedError(UserError):
    """Work that began and could not be finished: says why, what stays, and what continues it.

    The commands print it and leave with exit code 1.
    """


def in_one_line(error: BaseException) -> str:
    """The error in one line: the first line of its message, after its kind where that says more."""
    kind = type(error).__name__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return kind
    plain = isinstance(error, UserError | OSError)
    return printable(redacted(lines[0] if plain else f"{kind}: {lines[0]}"))


def user_error_in(error: BaseException | None) -> UserError | None:
    """The first UserError among an error, what it wraps (``cause``, as in Ray's errors) and what caused
    it; None when there is none."""
    waiting, seen = [error], set[int]()
    while waiting:
        one = waiting.pop(0)
        if not isinstance(one, BaseException) or id(one) in seen:
            continue
        wrapped = getattr(one, "cause", None)
        if isinstance(one, UserError) and not isinstance(wrapped, UserError):
            return one
        seen.add(id(one))
        waiting += [wrapped, one.__cause__, one.__context__]
    return None
