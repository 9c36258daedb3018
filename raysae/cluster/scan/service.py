"""The actor that runs the scans and hands their blocks to the readers."""

import json
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

from raysae.cluster.gauges import Gauges
from raysae.cluster.ray_internals import actor_is_dead, keep_for_actor, kept_for_actor
from raysae.cluster.scan.buffer import Memory, PieceBuffer, Taken
from raysae.errors import user_error_in
from raysae.remembered import forget_all
from raysae.storage.trouble import reason_in_words

SILENT_SECONDS = 10.0
"""A reader that was not heard of for so long is looked up: its process may be gone."""
BEHIND = 2
"""A scan that begins in the middle begins so many pieces earlier: readers that continue together from
their checkpoints are not all at the same piece."""
THREADS = 8
"""Calls that the service answers at the same time, beside two for each reader."""
LEAST_THREADS = 64
"""Calls that it answers at least: a later stage of a run may have more readers."""


class Scan(Protocol):
    """What is read in one pass: a ``StoreScan``, for example. Equal scans give the same pieces."""

    def pieces(self) -> Iterator[Any]:
        """The pieces, in the order in which they are read."""

    def blocks(self, first: int, cpus: float) -> Iterator[tuple[Any, int]]:
        """References to the blocks from piece ``first`` on, in order, each with its size in bytes."""


@dataclass(frozen=True)
class ScanSettings:
    """How much the service may hold, and how it treats slow readers."""

    memory: int
    """Bytes of all scans together."""
    cpus: float
    """CPUs that the reads of a scan may use."""
    readers: int
    """Readers at the same time, at most."""
    expected: int
    """Readers of one scan, until ``expect`` is called, and after the service was lost and began anew."""
    each: int
    """How many of them are in one process at the same time, at most, as far as that is known."""
    patience: float | None
    """Seconds that readers wait for a slower one before it gets a scan of its own; None: they always
    wait, as when all must be at the end before anything goes on."""


@dataclass
class _Running:
    scan: Scan
    first: int
    buffer: PieceBuffer
    name: str = field(default_factory=lambda: uuid.uuid4().hex)


class ScanService:
    """Runs each scan in a thread, and answers the readers."""

    def __init__(self, settings: ScanSettings):
        from raysae.cluster.session import quiet_libraries

        quiet_libraries()
        self._lock = threading.Lock()
        self._running: dict[str, _Running] = {}
        kept = kept_for_actor()
        self._set(settings if kept is None else ScanSettings(**json.loads(kept)))
        threading.Thread(target=self._watch, daemon=True).start()

    def settle(self, settings: ScanSettings) -> None:
        """Serve other readers, by these settings: those of before are gone."""
        keep_for_actor(json.dumps(asdict(settings)))
        forget_all()
        with self._lock:
            for running in list(self._running.values()):
                self._close(running)
            self._set(settings)

    def _set(self, settings: ScanSettings) -> None:
        self.settings, self.memory = settings, Memory(settings.memory)
        self._expected, self._each, self._turn = settings.expected, settings.each, 0
        self._actors: dict[str, str] = {}
        """The actor of each reader, as Ray names it."""
        self._refused: dict[Scan, str] = {}
        self._counts = {"scans": 0, "pieces": 0, "bytes": 0, "tokens": 0}

    def expect(self, readers: int, each: int = 1, turn: int = 0) -> None:
        """How many readers a new scan waits for before it drops a piece; up to ``each`` of them are in
        one process.

        Calls may overtake each other here: one of an earlier ``turn`` than the last is ignored.
        """
        with self._lock:
            if turn < self._turn:
                return
            self._expected, self._each, self._turn = readers, each, turn
            for running in self._running.values():
                running.buffer.expect_at_most(readers)

    def begin(self, scan: Scan) -> None:
        """Begin a scan whose readers are about to come."""
        with self._lock:
            if all(running.scan != scan for running in self._running.values()):
                self._begin(scan, 0)

    def join(self, scan: Scan, reader: str, number: int, worker: str, actor: str) -> str:
        """Let ``reader`` take pieces of ``scan`` from ``number`` on; the name of the running scan.

        When none that runs can give them, another begins there. ``worker`` names the reader's process,
        and ``actor`` is Ray's id of its actor, empty when it is none.
        """
        with self._lock:
            self._actors[reader] = actor
            for running in self._running.values():
                if running.scan == scan and running.buffer.join(reader, number, worker):
                    return running.name
            running = self._begin(scan, number)
            running.buffer.join(reader, number, worker)
            return running.name

    def position(self, scan: Scan) -> int:
        """The first piece that a running scan still holds, to join it there; 0 when none runs."""
        with self._lock:
            running = [one for one in self._running.values() if one.scan == scan]
            return max((one.buffer.position for one in running), default=0)

    def take(
        self, name: str, reader: str, number: int, needed: int, seconds: float, urgent: bool
    ) -> Taken:
        """Piece ``number`` of a scan; see ``PieceBuffer.take``."""
        running = self._running.get(name)
        if running is None:
            return Taken("detached")
        return running.buffer.take(reader, number, needed, seconds, urgent)

    def hurry(self, name: str, reader: str, waits: bool = True) -> None:
        """See ``PieceBuffer.hurry``."""
        if name in self._running:
            self._running[name].buffer.hurry(reader, waits)

    def pause(self, name: str, reader: str, number: int) -> None:
        """See ``PieceBuffer.pause``."""
        if name in self._running:
            self._running[name].buffer.pause(reader, number)

    def forwarded(self, tokens: int) -> None:
        """Count tokens that the model has read for live data."""
        with self._lock:
            self._counts["tokens"] += tokens

    def refuse(self, scan: Scan, reason: str) -> None:
        """Note why a worker of ``scan`` is about to fail: Ray Data hands on only that it has failed."""
        self._refused[scan] = reason

    def leave(self, name: str, reader: str) -> None:
        """Let go of what only ``reader`` needs."""
        with self._lock:
            self._actors.pop(reader, None)
            running = self._running.get(name)
            if running is not None:
                running.buffer.leave(reader)
                self._close_if_idle(running)

    def counts(self) -> dict[str, int]:
        """The scans that were begun, their pieces and bytes, and the most bytes held at one time."""
        return {**self._counts, "most_held": self.memory.most}

    def _begin(self, scan: Scan, number: int) -> _Running:
        first = max(number - BEHIND, 0)
        buffer = PieceBuffer(
            self.memory, first, self._expected, self.settings.patience, each=self._each, scan=scan
        )
        running = _Running(scan, first, buffer)
        self._running[running.name] = running
        self._counts["scans"] += 1
        threading.Thread(target=self._fill, args=(running,), daemon=True).start()
        return running

    def _fill(self, running: _Running) -> None:
        buffer = running.buffer
        try:
            for block, size in running.scan.blocks(running.first, self.settings.cpus):
                if not buffer.put(block, size):
                    return
                self._counts["pieces"] += 1
                self._counts["bytes"] += size
            buffer.end()
        except BaseException as error:
            buffer.end(*self._reason(running.scan, error))

    def _reason(self, scan: Scan, error: BaseException) -> tuple[str, bool]:
        """Why a scan has failed, and whether the reason is for the user."""
        said = self._refused.pop(scan, None) or user_error_in(error)
        if said is not None:
            return str(said), True
        cause = getattr(error, "cause", None)
        return reason_in_words(cause if isinstance(cause, Exception) else error), False

    def _watch(self) -> None:
        """Close scans that nobody reads, and let go of readers whose process is gone."""
        gauges = Gauges()
        while True:
            time.sleep(1.0)
            for name, value in self._gauged().items():
                gauges.set(name, value, "scan")
            with self._lock:
                for running in list(self._running.values()):
                    for reader in running.buffer.silent(SILENT_SECONDS):
                        if actor_is_dead(self._actors.get(reader, "")):
                            running.buffer.leave(reader)
                    self._close_if_idle(running)

    def _gauged(self) -> dict[str, float]:
        """The service's figures, as gauges."""
        return {
            "raysae_scan_bytes": self._counts["bytes"], "raysae_scans": self._counts["scans"],
            "raysae_scan_held_bytes": self.memory.used, "raysae_live_tokens": self._counts["tokens"],
        }  # fmt: skip

    def _close_if_idle(self, running: _Running) -> None:
        if running.buffer.is_idle:
            self._close(running)

    def _close(self, running: _Running) -> None:
        running.buffer.close()
        self._running.pop(running.name, None)


def threads_of(settings: ScanSettings) -> int:
    """How many calls a service answers at the same time."""
    return max(2 * settings.readers + THREADS, LEAST_THREADS)


def start_service(settings: ScanSettings) -> Any:
    """Start the service on the connected Ray; the handle of its actor, which ``ray.kill`` ends.

    It reserves no CPU: it waits for Ray Data, and hands references on.
    """
    import ray

    actor = ray.remote(ScanService)
    return actor.options(num_cpus=0, max_restarts=-1, max_concurrency=threads_of(settings)).remote(
        settings
    )
