"""The live view: a table that grows in a terminal, a line a finished row everywhere else.

For logs, ``set_log`` makes everything JSON lines, or nothing but errors and the outcome.
"""

import io
import json
import math
import sys
import time
from typing import IO, Any, Literal, cast

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

Log = Literal["auto", "quiet", "json"]
console = Console(highlight=False, soft_wrap=True)
LOGGED = (
    "step", "steps", "tokens_trained", "loss", "explained_variance", "l0", "dead_fraction", "stability",
    "tokens_per_second", "wait_seconds", "memory_bytes", "failed", "stopped",
)  # fmt: skip
"""What a JSON line of progress holds of a report."""


class _Messages(io.TextIOBase):
    """Makes each line that is printed to it a JSON line of its own."""

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
        print(json.dumps(line, default=str), file=sys.stdout, flush=True)


def seconds(value: float) -> str:
    """A duration for people: ``8.4 s``, ``3 min 20 s``, ``2 h 05 min``."""
    if value < 60:
        return f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def figures(record: dict[str, Any]) -> dict[str, str]:
    """The columns that every view of an SAE shows."""
    return {
        "EV": _number(record.get("explained_variance"), "{:.4f}"),
        "L0": _number(record.get("l0"), "{:.2f}"),
        "dead": _number(record.get("dead_fraction"), "{:.1%}"),
    }


def speeds(record: dict[str, Any]) -> dict[str, str]:
    """The columns that say how a running SAE gets on."""
    memory = record.get("memory_bytes")
    return {
        "tokens/s": _number(record.get("tokens_per_second"), "{:,.0f}"),
        "waited": _number(record.get("wait_seconds"), "{:.1f} s"),
        "memory": "" if memory is None else f"{memory / 2**20:,.0f} MiB",
    }


class Board:
    """Rows of work: running ones are redrawn in a terminal, finished ones are kept.

    Use as a context manager. ``total`` rows are expected; the ETA follows from the finished ones.
    """

    def __init__(self, title: str, total: int):
        self.title, self.total = title, total
        self._rows: dict[str, tuple[dict[str, str], float]] = {}
        self._finished: set[str] = set()
        self._started = time.time()
        self._live = Live(console=console, refresh_per_second=4, transient=True)

    def __enter__(self) -> "Board":
        if console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if console.is_terminal:
            self._live.stop()

    def update(
        self, key: str, cells: dict[str, str], progress: float, record: dict[str, Any] | None = None
    ) -> None:
        """Show ``cells`` for row ``key``, whose work is done to the share ``progress``; ``record`` is
        what a JSON line tells of it."""
        told = {name: value for name, value in (record or {}).items() if name in LOGGED}
        self._rows[key] = (cells, progress)
        news = progress >= 1 and key not in self._finished
        if news:
            self._finished.add(key)
        emit("progress", of=self.title, key=key, done=round(progress, 4), eta=self.eta(), **told)
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
            return seconds(time.time() - self._started)
        rest = (time.time() - self._started) * (self.total - done) / done
        return f"ETA {seconds(rest)}"

    def _table(self) -> Table:
        caption = f"{len(self._finished)} of {self.total} done, {self.eta()}"
        table = Table(title=self.title, caption=caption, title_justify="left", box=None)
        recent = list(self._rows.items())[-20:]
        names = list(dict.fromkeys(name for _, (cells, _) in recent for name in cells))
        table.add_column("")
        for name in [*names, "done"]:
            table.add_column(name, justify="right")
        for key, (cells, progress) in recent:
            values = [Text(cells.get(name, "")) for name in names]
            table.add_row(key, *values, Text(f"{progress:.0%}"))
        return table


def _number(value: float | None, form: str) -> str:
    return "" if value is None or math.isnan(value) else form.format(value)
