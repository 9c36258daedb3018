"""An alarm that ends a hung process and leaves a trace of where it hung."""

import faulthandler
import time
from io import TextIOWrapper
from pathlib import Path

SET_EVERY = 1.0
"""Seconds between two settings of the alarm, where steps are shorter than that."""


class HangAlarm:
    """Ends this process unless there is a step within ``seconds``; its stack goes to ``file``.

    With ``seconds`` None it does nothing. A process has one alarm: the one that was set last.
    """

    def __init__(self, file: Path, seconds: float | None):
        self.file, self.seconds = file, seconds
        self._output: TextIOWrapper | None = None
        self._set_at = 0.0

    @property
    def rang(self) -> bool:
        """Whether a process hung and was ended: then the file holds its stack."""
        return self.file.is_file() and self.file.stat().st_size > 0

    @property
    def reason(self) -> str:
        """What to say of work that hung."""
        return hang_reason(self.seconds, self.file)

    def set(self) -> None:
        """Start the countdown anew."""
        self._set_at = time.monotonic()
        if self.seconds is None:
            return
        if self._output is None:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            self._output = self.file.open("w")
        # a thread in C: it rings even while Python cannot run
        faulthandler.dump_traceback_later(self.seconds, exit=True, file=self._output)

    def step(self) -> None:
        """Work has made a step. Cheap enough to be called after every one."""
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
    """What to say of work that made no step for ``seconds`` and left its stack in ``file``."""
    return f"hung: no step for {seconds:g} s; see {file}"
