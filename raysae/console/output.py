"""What a command prints: every text as it is, with secrets hidden, and nothing in it steers a terminal.

Tables and lines are printed through this module alone. A terminal that is gone, or a log on a full disk,
never stops the work.
"""

import io
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import IO, Any

from rich import table
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.segment import Segment
from rich.text import Text

from raysae.printable import printable
from raysae.redaction import redacted, traceback_of

PLAIN: dict[str, bool] = {"highlight": False, "markup": False, "emoji": False}
"""How rich shows a text as it is: brackets and colons in a path are no markup."""


class RedactedStream:
    """A text stream that hides secrets, line by line, and passes everything else to ``stream``.

    With ``escapes``, it shows control characters as escapes, apart from those of progress bars (``\\r``).
    """

    def __init__(self, stream: Any, escapes: bool = False):
        self.stream, self.escapes = stream, escapes
        self._line = ""

    def write(self, text: str) -> int:
        """Write the whole lines of the text; the rest waits for its end, or for ``flush``."""
        whole, end, rest = (self._line + text).rpartition("\n")
        self._line = rest
        if end:
            self.stream.write(self._shown(whole) + end)
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write each of the lines."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Write the line that has no end yet."""
        rest, self._line = self._line, ""
        if rest:
            self.stream.write(self._shown(rest))
        self.stream.flush()

    def _shown(self, text: str) -> str:
        text = redacted(text)
        if not self.escapes:
            return text
        return "\r".join(printable(part, lines=True) for part in text.split("\r"))

    def __getattr__(self, name: str) -> Any:
        if name == "stream":  # of a copy that is being made
            raise AttributeError(name)
        return getattr(self.stream, name)


class SafeConsole(Console):
    """A console that escapes control characters and hides secrets in what it prints, also where no
    command has made its streams do so, and that never raises OSError."""

    _redacting: RedactedStream | None = None

    def __init__(self, **options: Any):
        super().__init__(**{"soft_wrap": True, **PLAIN, **options})

    def print(self, *objects: Any, **options: Any) -> None:
        """Print the objects; strings with control characters shown as escapes."""
        shown = (printable(one, lines=True) if isinstance(one, str) else one for one in objects)
        try:
            super().print(*shown, **options)
        except OSError:
            self._go_quiet()

    @property
    def file(self) -> Any:
        """Where the console prints to."""
        stream = Console.file.fget(self)  # type: ignore[attr-defined]
        if isinstance(stream, RedactedStream) or getattr(stream, "redacts", False):
            return stream
        if self._redacting is None or self._redacting.stream is not stream:
            self._redacting = RedactedStream(stream)
        return self._redacting

    @file.setter
    def file(self, stream: Any) -> None:
        Console.file.fset(self, stream)  # type: ignore[attr-defined]

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
        if sys.stdout in (self.file, getattr(self.file, "stream", None)):
            drop_stdout()


class Table(table.Table):
    """A table whose texts are shown as they are, with control characters as escapes.

    With ``whole_cells``, a terminal that is too narrow for all columns shows fewer, and cuts no figure.
    """

    def __init__(self, *headers: Any, whole_cells: bool = False, **options: Any):
        self._whole_cells = whole_cells
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

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """The table, without the columns before the last one that have no room."""
        wide = options.update(max_width=10_000)
        while self._whole_cells and len(self.columns) > 2:
            if self.__rich_measure__(console, wide).maximum <= options.max_width:
                break
            del self.columns[-2]
        yield from super().__rich_console__(console, options)


def table_lines(shown: table.Table, width: int = 10_000) -> list[str]:
    """The lines of a table at full width, so that nothing is cut."""
    text = io.StringIO()
    SafeConsole(file=text, width=width).print(shown)
    return [line.rstrip() for line in text.getvalue().splitlines()]


def say(text: str, file: IO[str] | None = None) -> None:
    """Print a text to stdout, or to ``file``: secrets hidden, control characters shown as escapes."""
    print(
        printable(redacted(text), lines=True), file=sys.stdout if file is None else file, flush=True
    )


def drop_stdout() -> None:
    """Let what is still printed to stdout go nowhere: its reader has left, or its disk is full."""
    with suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


@contextmanager
def safe_streams() -> Iterator[None]:
    """Inside the block, what is written to stdout and stderr holds no secret, and nothing that is
    written to stderr steers a terminal: also what libraries write.

    Characters that the encoding of stdout or stderr lacks become escapes.
    """
    for stream in (sys.stdout, sys.stderr):
        if getattr(stream, "errors", None) == "strict" and hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    sys.excepthook = _print_traceback
    before = sys.stdout, sys.stderr
    here = _redacting(sys.stdout, escapes=False), _redacting(sys.stderr, escapes=True)
    sys.stdout, sys.stderr = here
    try:
        yield
    finally:
        for stream in here:
            with suppress(OSError, ValueError, AttributeError):
                stream.flush()
        sys.stdout, sys.stderr = before


def _redacting(stream: Any, escapes: bool) -> Any:
    if stream is None or (isinstance(stream, RedactedStream) and stream.escapes >= escapes):
        return stream
    return RedactedStream(stream, escapes)


def _print_traceback(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    say(traceback_of(error.with_traceback(trace)).rstrip("\n"), sys.stderr)


def _cell(cell: Any) -> Any:
    if isinstance(cell, str):
        return Text(printable(cell, lines=True))
    return cell


def _safe(segment: Segment) -> Segment:
    text, style, control = segment
    if control is not None or text.isprintable():
        return segment
    return Segment(printable(text, lines=True), style, control)
