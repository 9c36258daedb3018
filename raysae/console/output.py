"""The console of all commands: it shows every text as it is, and nothing in a text steers a terminal.

Tables and lines are printed through this module alone. A terminal that is gone, or a log on a full disk,
never stops the work.
"""

import io
import os
import sys
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import IO, Any, cast

from rich import table
from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from raysae.printable import printable

PLAIN: dict[str, bool] = {"highlight": False, "markup": False, "emoji": False}
"""How rich shows a text as it is: brackets and colons in a path are no markup."""


class SafeConsole(Console):
    """A console that escapes control characters in what it prints, and that never raises OSError."""

    def __init__(self, **options: Any):
        super().__init__(**{"soft_wrap": True, **PLAIN, **options})

    def print(self, *objects: Any, **options: Any) -> None:
        """Print the objects; strings with control characters shown as escapes."""
        shown = (printable(one, lines=True) if isinstance(one, str) else one for one in objects)
        try:
            super().print(*shown, **options)
        except OSError:
            self._go_quiet()

    def rule(self, title: Any = "", **options: Any) -> None:
        """Draw a line with a title in it."""
        super().rule(printable(title) if isinstance(title, str) else title, **options)

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """The parts to be printed; control characters in a text are shown as escapes."""
        return map(_safe, super().render(renderable, options))

    def on_broken_pipe(self) -> None:
        """Print nothing more: whoever read the output has left."""
        self._go_quiet()

    def _go_quiet(self) -> None:
        self._buffer.clear()
        self.quiet = True
        if self.file is sys.stdout:
            drop_stdout()


class Table(table.Table):
    """A table whose texts are shown as they are, with control characters as escapes."""

    def __init__(self, *headers: Any, **options: Any):
        for name in ("title", "caption"):
            if isinstance(options.get(name), str):
                options[name] = printable(options[name])
        super().__init__(*headers, **options)

    def add_column(self, header: RenderableType = "", *rest: Any, **options: Any) -> None:
        """Add a column; see ``rich.table.Table``."""
        super().add_column(_cell(header), *rest, **options)

    def add_row(self, *cells: RenderableType | None, **options: Any) -> None:
        """Add a row; see ``rich.table.Table``."""
        super().add_row(*map(_cell, cells), **options)


def table_lines(shown: table.Table, width: int = 10_000) -> list[str]:
    """The lines of a table at full width, so that nothing is cut."""
    text = io.StringIO()
    SafeConsole(file=text, width=width).print(shown)
    return [line.rstrip() for line in text.getvalue().splitlines()]


def say(text: str, file: IO[str] | None = None) -> None:
    """Print a text to stdout, or to ``file``, with control characters shown as escapes."""
    print(printable(text, lines=True), file=sys.stdout if file is None else file, flush=True)


def drop_stdout() -> None:
    """Let what is still printed to stdout go nowhere: its reader has left, or its disk is full."""
    with suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


@contextmanager
def safe_streams() -> Iterator[None]:
    """Inside the block, nothing that is written to stderr steers a terminal: also what libraries write.

    Characters that the encoding of stdout or stderr lacks become escapes.
    """
    for stream in (sys.stdout, sys.stderr):
        if getattr(stream, "errors", None) == "strict" and hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    sys.excepthook = _print_traceback
    before = sys.stderr
    sys.stderr = cast(IO[str], _SafeStream(before))
    try:
        yield
    finally:
        sys.stderr = before


class _SafeStream:
    """A stream that escapes control characters, apart from those of progress bars (``\\r``)."""

    def __init__(self, stream: IO[str]):
        self._stream = stream

    def write(self, text: str) -> int:
        parts = (printable(part, lines=True) for part in text.split("\r"))
        self._stream.write("\r".join(parts))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _print_traceback(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    say("".join(traceback.format_exception(kind, error, trace)).rstrip("\n"), sys.stderr)


def _cell(cell: Any) -> Any:
    if isinstance(cell, str):
        return Text(printable(cell, lines=True))
    return cell


def _safe(segment: Segment) -> Segment:
    text, style, control = segment
    if control is not None or text.isprintable():
        return segment
    return Segment(printable(text, lines=True), style, control)
