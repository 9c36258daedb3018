"""An alarm that ends a hung process and writes its stack to a file."""

import faulthandler
import time
from pathlib import Path
from typing import TextIO

from raysae.storage.files import open_own

SET_EVERY = 1.0
"""Seconds between two restarts of the countdown, when steps are shorter than that."""


class HangAlarm:
    """Ends this process when no step happens within ``seconds``; writes its stack to ``file``.

    With ``seconds`` None the alarm does nothing. A process has one alarm: the one that was set last.
    """

    def __init__(self, file: Path, seconds: float | None):
        self.file, self.seconds = file, seconds
        self._output: TextIO | None = None
        self._set_at = 0.0

    @property
    def rang(self) -> bool:
        """Whether a process hung and the alarm ended it: the file then holds its stack."""
        return self.file.is_file() and self.file.stat().st_size > 0

    @property
    def reason(self) -> str:
        """The failure message for work that hung."""
        return hang_reason(self.seconds, self.file)

    def set(self) -> None:
        """Start or restart the countdown."""
        self._set_at = time.monotonic()
        if self.seconds is None:
            return
        if self._output is None:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            self._output = open_own(self.file)
            self._output.truncate(0)
        # a thread in C: it works even while Python cannot run
        faulthandler.dump_traceback_later(self.seconds, exit=True, file=self._output)

    def step(self) -> None:
        """Report that the work has made a step. This is cheap enough to call after every step."""
        if time.monotonic() - self._set_at >= SET_EVERY:
            self.set()

    def cancel(self) -> None:
        """Stop the countdown and remove the file."""
        faulthandler.cancel_dump_traceback_later()
        if self._output is not None:
            self._output.close()
            self._output = None
            self.file.unlink(missing_ok=True)


def hang_reason(seconds: float | None, file: Path) -> str:
    """The failure message for work that made no step for ``seconds``; its stack is in ``file``."""
    return f"hung: no step for {seconds:g} s; see {file}"
