"""The progress of an extraction: tokens per second, bytes written, time left."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from raysae.console.board import console, seconds
from raysae.extraction.plan import ExtractionPlan
from raysae.extraction.sequences import TokenPlan
from raysae.extraction.shards import report_file, tokens_file
from raysae.extraction.text_notes import text_notes

LINE_SECONDS = 10.0
"""Seconds between two lines when there is no terminal to redraw."""


class ExtractionProgress:
    """Reads the workers' progress from files in the work folder, and prints it."""

    def __init__(self, plan: ExtractionPlan):
        self.plan = plan
        self._printed = time.monotonic()

    def reading(self, sequences: int, tokens: int) -> None:
        """Print every few seconds how many sequences and tokens have been read."""
        if time.monotonic() - self._printed > LINE_SECONDS:
            self._printed = time.monotonic()
            console.print(f"  {sequences:,} sequences, {tokens:,} tokens read")

    @contextmanager
    def watching(self, tokens: TokenPlan) -> Iterator[None]:
        """Show the progress of the forward passes inside the block."""
        size = tokens.bytes(self.plan)
        console.print(
            f"  {_number(tokens.sequences, 'sequence')}, {tokens.tokens:,} tokens in "
            f"{_number(len(tokens.parts), 'shard')}; {_number(len(self.plan.sites), 'site')}, "
            f"{size / 1e9:.3f} GB"
        )
        for note in text_notes(self.plan.source, tokens.counts, tokens.repeated_rows):
            console.print(f"  {note}")
        watch = _Watch(self.plan, tokens, size)
        stop = threading.Event()
        thread = threading.Thread(target=watch.run, args=(stop,), daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
        watch.print_line("done")


def _number(count: int, what: str) -> str:
    return f"{count:,} {what}{'s' * (count != 1)}"


class _Watch:
    """Reads the work folder and shows the progress: every second in a terminal, else less often."""

    def __init__(self, plan: ExtractionPlan, tokens: TokenPlan, size: int):
        self.plan, self.work, self.size = plan, tokens.work(), size
        self.total = sum(self.work)
        self.before = self.count()
        self.started = time.monotonic()

    def run(self, stop: threading.Event) -> None:
        from rich.live import Live

        if console.is_terminal:
            with Live(console=console, transient=True, refresh_per_second=2) as live:
                while not stop.wait(1.0):
                    live.update(self.line())
            return
        while not stop.wait(LINE_SECONDS):
            self.print_line()

    def print_line(self, last: str = "") -> None:
        console.print(f"  {self.line(last)}")

    def count(self) -> int:
        """Tokens that have run: all of the finished shards, and the reported ones of the others."""
        return sum(self._tokens_of(number) for number in range(len(self.work)))

    def line(self, last: str = "") -> str:
        """The progress: tokens, rate, size, and the time left, or ``last`` and the time taken."""
        now = self.count()
        passed = max(time.monotonic() - self.started, 1e-9)
        rate = (now - self.before) / passed
        written = self.size * now / self.total / 1e9
        if last:
            left = f"{last} in {seconds(passed)}"
        else:
            left = f"ETA {seconds((self.total - now) / rate)}" if rate else "starting"
        return (
            f"{now:,} of {self.total:,} tokens, {rate:,.0f} tokens/s, {written:.3f} of "
            f"{self.size / 1e9:.3f} GB, {left}"
        )

    def _tokens_of(self, shard: int) -> int:
        if report_file(self.plan.work, shard).exists():
            return self.work[shard]
        try:
            return int(tokens_file(self.plan.work, shard).read_text() or 0)
        except (FileNotFoundError, ValueError):
            return 0
