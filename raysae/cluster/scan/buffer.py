"""The pieces that a scan holds for its readers: at most so many bytes, and never too few to go on.

The producer puts pieces in order, each reader takes them in order. A piece is dropped once every reader
is past it. The producer waits while memory is full, so the slowest reader holds it back; but it goes on
when that reader itself waits for a piece.
"""

import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

JOIN_SECONDS = 60.0
"""Seconds that a scan keeps its first pieces for readers that are expected and have not come yet."""
PAUSE_SECONDS = 60.0
"""Seconds that a piece is kept for a reader that has paused."""
AHEAD = 8
"""A reader joins a scan that will come to its piece after so many others, at most."""
LOOK_SECONDS = 0.5
"""Seconds between two looks at the clock while the producer waits."""

Clock = Callable[[], float]


class Memory:
    """The bytes that all buffers of a service may hold, and the lock that they share."""

    def __init__(self, total: int):
        self.total, self.used = total, 0
        self.most = 0
        """The most bytes that were held at one time."""
        self.changed = threading.Condition()
        self.buffers: list[PieceBuffer] = []

    def fits(self, size: int) -> bool:
        """Whether ``size`` more bytes fit, once every buffer has dropped what nobody needs."""
        if self.used + size > self.total:
            for buffer in self.buffers:
                buffer.drop_passed()
        return self.used + size <= self.total

    def add(self, size: int) -> None:
        """Count ``size`` bytes more, or fewer."""
        self.used += size
        self.most = max(self.most, self.used)


@dataclass
class _Reader:
    needed: int
    """The first piece that it still needs."""
    worker: str = ""
    """The process that it is in: where one reader of a process waits, the others do not move either."""
    urgent: bool = False
    """Whether its process waits for it, and does not only read ahead."""
    wanted: int | None = None
    """The piece that it waits for; None: it works on what it has."""
    called: float = 0.0
    """When it was last heard of."""
    paused: bool = False
    """Whether it may go on later, or not at all."""


@dataclass(frozen=True)
class Taken:
    """What a reader gets: a piece, or why there is none."""

    state: Literal["piece", "wait", "end", "detached", "failed"]
    """``wait``: not there yet, ask again. ``detached``: this scan goes on without this reader."""
    piece: Any = None
    reason: str = ""
    refused: bool = False
    """Whether the reason is for the user, and another try would end the same way."""


@dataclass
class PieceBuffer:
    """The pieces of one scan, from number ``first`` on.

    ``expected`` readers are waited for, for up to ``JOIN_SECONDS``, before a piece is dropped. A reader
    for which others wait longer than ``patience`` seconds is detached; None: never.
    """

    memory: Memory
    first: int
    expected: int = 1
    patience: float | None = None
    clock: Clock = time.monotonic
    each: int = 1
    scan: Any = None
    """What is read."""
    readers: dict[str, _Reader] = field(default_factory=dict)
    joined: int = 0
    """How many readers have joined so far."""
    closed: bool = False

    def __post_init__(self) -> None:
        self._pieces: dict[int, tuple[Any, int]] = {}
        self._came = Counter[str]()
        """How many readers of each process have joined."""
        self._start = self._end = self.first
        self._ended: Taken | None = None
        self._made = self.clock()
        self._blocked: float | None = None
        """Since when the producer has been waiting."""
        self._stands_still = False
        """Whether the producer waits now."""
        self.memory.buffers.append(self)

    def join(self, reader: str, number: int, worker: str = "") -> bool:
        """Let a reader take pieces from ``number`` on; False when that one was dropped, or is far off."""
        with self.memory.changed:
            if self.closed or not self._start <= number <= self._end + AHEAD:
                return False
            self.readers[reader] = _Reader(number, worker or reader, called=self.clock())
            self.joined += 1
            self._came[worker or reader] += 1
            self.memory.changed.notify_all()
            return True

    def expect_at_most(self, readers: int) -> None:
        """Wait for no more than so many readers: there are no others."""
        with self.memory.changed:
            self.expected = min(self.expected, readers)
            self.memory.changed.notify_all()

    def pause(self, reader: str, number: int) -> None:
        """A reader may go on later with piece ``number``, as after an evaluation, or not at all.

        The piece is kept for it for ``PAUSE_SECONDS``.
        """
        with self.memory.changed:
            state = self.readers.get(reader)
            if state is not None and state.needed < number:  # else it has gone on already
                state.needed, state.called, state.paused = number, self.clock(), True
                self.memory.changed.notify_all()

    def leave(self, reader: str) -> None:
        """Let go of all pieces that only this reader needs."""
        with self.memory.changed:
            self.readers.pop(reader, None)
            self.memory.changed.notify_all()

    def hurry(self, reader: str, waits: bool = True) -> None:
        """The process of a reader that reads ahead has begun to wait for it, or no longer does."""
        with self.memory.changed:
            if reader in self.readers:
                self.readers[reader].urgent = waits
                self.memory.changed.notify_all()

    def take(
        self, reader: str, number: int, needed: int, seconds: float, urgent: bool = True
    ) -> Taken:
        """Piece ``number``, waited for up to ``seconds``; the reader needs none before ``needed``.

        ``urgent``: whether its process waits for it.
        """
        with self.memory.changed:
            state = self.readers.get(reader)
            if state is None or number < self._start:
                return Taken("detached")
            state.needed, state.called, state.wanted = needed, self.clock(), number
            state.urgent |= urgent  # ``hurry`` may have come first
            state.paused = False
            self.memory.changed.notify_all()
            self.memory.changed.wait_for(lambda: self._answer(reader, number) is not None, seconds)
            state.called, state.wanted, state.urgent = self.clock(), None, False
            return self._answer(reader, number) or Taken("wait")

    def put(self, piece: Any, size: int) -> bool:
        """Add the next piece, once it may be held; False when the scan was closed."""
        with self.memory.changed:
            while not self.closed and not self._may_hold(size):
                self._stands_still = True
                self._expect_no_more()
                self._detach_slow()
                self.memory.changed.wait(LOOK_SECONDS)
            self._blocked, self._stands_still = None, False
            if self.closed:
                return False
            self._pieces[self._end] = piece, size
            self._end += 1
            self.memory.add(size)
            self.memory.changed.notify_all()
            return True

    def end(self, reason: str = "", refused: bool = False) -> None:
        """No further piece will come: all were put, or ``reason`` says why not."""
        with self.memory.changed:
            self._ended = (
                Taken("failed", reason=reason, refused=refused) if reason else Taken("end")
            )
            self.memory.changed.notify_all()

    def close(self) -> None:
        """Let go of everything."""
        with self.memory.changed:
            self.closed = True
            self._drop_to(self._end)
            self.readers.clear()
            if self in self.memory.buffers:
                self.memory.buffers.remove(self)
            self.memory.changed.notify_all()

    def drop_passed(self) -> None:
        """Drop the pieces that every reader is past. The caller holds the lock."""
        if not self.is_awaiting:
            needed = [reader.needed for reader in self._at_work()]
            self._drop_to(min(needed, default=self._start))

    @property
    def is_awaiting(self) -> bool:
        """Whether readers are expected that have not come yet."""
        return self.joined < self.expected and self.clock() - self._made < JOIN_SECONDS

    @property
    def is_idle(self) -> bool:
        """Whether nobody reads it any more."""
        return not self._at_work() and not self.is_awaiting

    @property
    def position(self) -> int:
        """The first piece that is still held; 0 when nobody reads."""
        with self.memory.changed:
            return self._start if self._at_work() else 0

    def silent(self, seconds: float) -> list[str]:
        """The readers that were not heard of for so long and wait for nothing."""
        with self.memory.changed:
            now = self.clock()
            return [
                name
                for name, reader in self.readers.items()
                if reader.wanted is None and now - reader.called > seconds
            ]

    def _answer(self, reader: str, number: int) -> Taken | None:
        if self.closed or reader not in self.readers:
            return Taken("detached")
        if number in self._pieces:
            return Taken("piece", self._pieces[number][0])
        return self._ended

    def _may_hold(self, size: int) -> bool:
        return not self._pieces or self.memory.fits(size) or self._is_starving()

    def _is_starving(self) -> bool:
        """Whether the processes that hold the scan back wait for a piece themselves."""
        waiting = {reader.worker for reader in self.readers.values() if self._lacks(reader)}
        if not self._at_work() or (self.is_awaiting and not self._keeps_away(waiting)):
            return False
        return all(reader.worker in waiting for reader in self._slowest())

    def _keeps_away(self, waiting: set[str]) -> bool:
        """Whether all readers that are expected and have not come are in processes that wait."""
        if len(self._came) * self.each < self.expected:
            return False
        return all(name in waiting for name, count in self._came.items() if count < self.each)

    def _lacks(self, reader: _Reader) -> bool:
        """Whether a reader's process waits for a piece that is not there."""
        return reader.urgent and reader.wanted is not None and reader.wanted >= self._end

    def _expect_no_more(self) -> None:
        """Expect no more readers once every process waits at a scan that stands still: nobody comes to
        the newest, nor to others that read the same, as when one began again. To older scans of something
        else the processes come when they are past the newest."""
        still = [buffer for buffer in self.memory.buffers if buffer._stands_still]
        waiting = {
            reader.worker
            for buffer in still
            for reader in buffer.readers.values()
            if buffer._lacks(reader)
        }
        newest = max(still, key=lambda buffer: buffer._made)
        for buffer in still:
            each = Counter(reader.worker for reader in buffer.readers.values())
            nobody = len(waiting) * max(each.values(), default=0) >= buffer.expected
            if nobody and buffer.scan == newest.scan:
                buffer.expected = buffer.joined

    def _at_work(self) -> list[_Reader]:
        """The readers, without those that have paused for long: they may not come back."""
        now = self.clock()
        return [
            reader
            for reader in self.readers.values()
            if not (reader.paused and now - reader.called > PAUSE_SECONDS)
        ]

    def _slowest(self) -> list[_Reader]:
        readers = self._at_work()
        least = min(reader.needed for reader in readers)
        return [reader for reader in readers if reader.needed == least]

    def _detach_slow(self) -> None:
        """Detach the readers that hold back others for too long."""
        waits = any(map(self._lacks, self.readers.values()))
        if self.patience is None or not waits or self.is_awaiting:
            self._blocked = None
            return
        self._blocked = self.clock() if self._blocked is None else self._blocked
        if self.clock() - self._blocked > self.patience:
            slow = self._slowest()
            for name in [name for name, reader in self.readers.items() if reader in slow]:
                del self.readers[name]
            self._blocked = None
            self.memory.changed.notify_all()

    def _drop_to(self, number: int) -> None:
        while self._start < number and self._start in self._pieces:
            self.memory.add(-self._pieces.pop(self._start)[1])
            self._start += 1
