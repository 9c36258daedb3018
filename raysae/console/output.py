"""What a command prints, with secrets hidden: its own words, those of libraries, and tracebacks."""

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from raysae.redaction import redacted


class RedactedStream:
    """A text stream that hides secrets, line by line, and passes everything else to ``stream``."""

    def __init__(self, stream: Any):
        self.stream = stream
        self._line = ""

    def write(self, text: str) -> int:
        """Write the whole lines of the text; the rest waits for its end, or for ``flush``."""
        whole, end, rest = (self._line + text).rpartition("\n")
        self._line = rest
        if end:
            self.stream.write(redacted(whole) + end)
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write each of the lines."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Write the line that has no end yet."""
        rest, self._line = self._line, ""
        if rest:
            self.stream.write(redacted(rest))
        self.stream.flush()

    def __getattr__(self, name: str) -> Any:
        if name == "stream":  # of a copy that is being made
            raise AttributeError(name)
        return getattr(self.stream, name)


@contextmanager
def redacted_output() -> Iterator[None]:
    """Hide secrets in what the block writes to ``sys.stdout`` and ``sys.stderr``."""
    before = sys.stdout, sys.stderr
    here = tuple(_redacting(stream) for stream in before)
    sys.stdout, sys.stderr = here
    try:
        yield
    finally:
        for stream in here:
            if stream is not None:
                stream.flush()
        sys.stdout, sys.stderr = before


def _redacting(stream: Any) -> Any:
    return (
        stream if stream is None or isinstance(stream, RedactedStream) else RedactedStream(stream)
    )
