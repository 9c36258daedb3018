"""Errors meant for the person at the keyboard: printed as one message, never as a traceback."""

from raysae.redaction import redacted


class UserError(ValueError):
    """Input that cannot be used: says what, where, what was found, what was expected, what to do.

    The commands print it and leave with exit code 2. Secrets in the message are hidden.
    """

    def __init__(self, message: object = "") -> None:
        super().__init__(redacted(str(message)))
