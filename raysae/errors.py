"""Errors meant for the person at the keyboard: printed as one message, never as a traceback."""


class UserError(ValueError):
    """Input that cannot be used: says what, where, what was found, what was expected, what to do.

    The commands print it and leave with exit code 2.
    """


class UnfinishedError(UserError):
    """Work that began and could not be finished: says why, what stays, and what continues it.

    The commands print it and leave with exit code 1.
    """
