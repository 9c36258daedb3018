"""Errors meant for the person at the keyboard: printed as one message, never as a traceback."""


class UserError(ValueError):
    """Input that cannot be used: says what, where, what was found, what was expected, what to do.

    The commands print it and leave with exit code 2.
    """
