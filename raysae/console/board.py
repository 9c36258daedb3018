"""The live view: a table that grows in a terminal, a line a finished row everywhere else.

For logs, ``set_log`` makes everything JSON lines, or nothing but errors and the outcome.
"""

import io
import json
import sys
import time
from typing import IO, Any, Literal, cast

from rich.live import Live

from raysae.console.output import SafeConsole, Table
from raysae.metrics.definitions import seconds
from raysae.redaction import redacted_values

Log = Literal["auto", "quiet", "json"]
console = SafeConsole()


class _Messages(io.TextIOBase):
    """Makes each line that is printed to it a JSON line of its own, without secrets."""

    redacts = True

    def __init__(self) -> None:
        self._line = ""

    def write(self, text: str) -> int:
        *whole, self._line = (self._line + text).split("\n")
        for line in whole:
            if line.strip():
                emit("message", text=line.strip())
        return len(text)


def set_log(log: Log) -> None:
    """Choose how this process tells of its progress."""
    console.quiet = log == "quiet"
    # without a file of its own a console prints to stdout
    console.file = cast(IO[str], _Messages() if log == "json" else None)


def emit(event: str, **fields: Any) -> None:
    """Print an event as a JSON line, where those were chosen."""
    if isinstance(console.file, _Messages):
        line = {"event": event, "time": round(time.time(), 3), **fields}
        plain = json.loads(json.dumps(line, default=str))
        print(json.dumps(redacted_values(plain)), file=sys.stdout, flush=True)


class Board:
    """Rows of work: running ones are redrawn in a terminal, finished ones stay.

    ``total`` rows are expected; the ETA follows from the finished ones.
    """

    def __init__(self, title: str, total: int):
        self.title, self.total = title, total
        self._rows: dict[str, tuple[dict[str, str], float]] = {}
        self._finished: set[str] = set()
        self._started = time.monotonic()
        self._live = Live(console=console, refresh_per_second=4, transient=True)

    def start(self) -> None:
        """Begin to draw."""
        if console.is_terminal:
            self._live.start()

    def stop(self) -> None:
        """Draw no more."""
        if console.is_terminal:
            self._live.stop()

    def update(self, key: str, cells: dict[str, str], progress: float) -> None:
        """Show ``cells`` for row ``key``, of whose work the fraction ``progress`` is done."""
        self._rows[key] = (cells, progress)
        news = progress >= 1 and key not in self._finished
        if news:
            self._finished.add(key)
        if isinstance(console.file, _Messages):
            return
        if console.is_terminal:
            self._live.update(self._table())
        elif news:
            line = "  ".join(f"{name} {value}" for name, value in cells.items() if value)
            console.print(f"  {len(self._finished)}/{self.total}  {key}  {line}  ({self.eta()})")

    def eta(self) -> str:
        """How long the rest will take at the pace so far."""
        done = sum(progress for _, progress in self._rows.values())
        if len(self._finished) >= self.total or not done:
            return seconds(time.monotonic() - self._started)
        rest = (time.monotonic() - self._started) * (self.total - done) / done
        return f"ETA {seconds(rest)}"

    def _table(self) -> Table:
        caption = f"{len(self._finished)} of {self.total} done, {self.eta()}"
        table = Table(
            title=self.title, caption=caption, title_justify="left", box=None, whole_cells=True
        )
        recent = list(self._rows.items())[-20:]
        names = list(dict.fromkeys(name for _, (cells, _) in recent for name in cells))
        table.add_column("")
        for name in [*names, "done"]:
            table.add_column(name, justify="right")
        for key, (cells, progress) in recent:
            values = [cells.get(name, "") for name in names]
            table.add_row(key, *values, f"{progress:.0%}")
        return table
