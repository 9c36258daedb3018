"""MLflow records: a parent run for each sweep, and a child run for each trial and each site.

Threads of its own write them, those of each trial or site in order, so that a slow or dead tracking
server never stops or slows a sweep. While the server does not answer, records wait. Records that are
still not written some seconds after the end are counted as lost; the same command writes them later,
because MLflow runs are found by tag and the run folder holds every figure. What such a run has already
is not written again.
"""

import logging
import math
import os
import threading
import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Literal

from raysae.metrics import MLFLOW, floats
from raysae.records import mlflow_refusal as refusal
from raysae.records.events import (
    Analysed,
    Committed,
    Event,
    Failed,
    Item,
    Progressed,
    RunEnded,
    Stopped,
)
from raysae.records.folder import RunFolder
from raysae.records.lanes import Lanes
from raysae.records.mlflow_files import is_server
from raysae.records.mlflow_wait import STUCK_SECONDS, Wait
from raysae.records.mlflow_writer import ANALYSIS, Writer
from raysae.redaction import traceback_of, without_secret

RETRY_SECONDS = 2.0
"""Seconds between two tries at a server that does not answer."""
LAST_TRIES_SECONDS = 5.0
"""Seconds for which MLflow has not answered, before and after the end of the run, when it is given up."""
TRIES = 5
"""Times that a record is tried whose error may pass, although MLflow answers."""
Outcome = Literal["finished", "silent", "failed"]
"""Of a try to write a record: it is written or lost; MLflow does not answer; or it answers now, and the
record may be taken if it is tried again."""
LANES = 8
"""Trials and sites that are written to a server side by side: a call to it may take seconds."""


def tracking_uri(run: RunFolder) -> str:
    """The MLflow server: that of the recipe, else of the environment (``MLFLOW_TRACKING_URI``), else a
    SQLite file beside the run folders.

    Where both name the same server, the one of the environment is taken: it may have a password, which
    a recipe has not. So the address is to be shown only through ``redacted``.
    """
    named, around = run.recipe.tracking_uri, os.environ.get("MLFLOW_TRACKING_URI")
    if named and around and without_secret(around) == without_secret(named):
        return around
    return named or around or refusal.sqlite_uri(run.path.parent / "mlflow.db")


class Recorder:
    """A listener that records a run's events. This base class records nothing."""

    def hear(self, event: Event) -> None:
        """Record the event; does nothing here."""

    def close(self) -> int:
        """Wait until all records are written; returns how many could not be."""
        return 0

    @property
    def reason(self) -> str:
        """Why records could not be written, in words; empty if all were."""
        return ""


def make_recorder(run: RunFolder) -> Recorder:
    """The recorder that the recipe asks for: one for MLflow, or one that records nothing."""
    return MLflowRecorder(run) if run.recipe.records.mlflow else Recorder()


class MLflowRecorder(Recorder):
    """Writes to MLflow from threads of its own, which also import MLflow and connect to the server.

    A file on this machine is written by one thread.
    """

    def __init__(self, run: RunFolder):
        self.uri = tracking_uri(run)
        self._run = run
        server = is_server(self.uri)
        self._writer: Writer | None = None
        self._wait = Wait(server)
        self._lost = 0
        self._reason = ""
        self._committed: set[str] = set()
        """Items whose whole history comes with their last event."""
        self._tried = False
        self._silent_until = 0.0
        """Until when, by ``time.monotonic``, no thread tries: MLflow did not answer one of them."""
        self._refused = False
        """Whether MLflow takes no record at all, and waiting does not help."""
        self._away = False
        """Whether MLflow did not answer until the time was over."""
        self._connecting, self._lock = threading.Lock(), threading.Lock()
        self._lanes = Lanes("raysae-mlflow", LANES if server else 1, self._do)

    def hear(self, event: Event) -> None:
        """Queue the event for a thread; returns at once."""
        match event:
            case Progressed(item, record) if "step" in record:
                metrics, step = floats(record, MLFLOW), record["step"]
                self._put(item.key, lambda writer: self._progress(writer, item, metrics, step))
            case Committed(item) if item.key.startswith(ANALYSIS):
                pass  # the phase's result is recorded as a whole
            case Failed(item) if item.key.startswith(ANALYSIS):
                pass
            case Analysed(phase, figures, folder):
                known = {
                    f"{ANALYSIS}{phase}/{name}": float(value)
                    for name, value in figures.items()
                    if value is not None and math.isfinite(value)
                }
                self._put(ANALYSIS, lambda writer: writer.analysed(phase, known, folder))
            case Committed(item, record, folder):
                self._committed.add(item.key)
                self._put(item.key, lambda writer: writer.sae_done(item, dict(record), folder))
            case Failed(item, reason):
                self._put(item.key, lambda writer: writer.ended(item, reason, "FAILED"))
            case Stopped(item, reason):
                self._put(item.key, lambda writer: writer.ended(item, reason, "KILLED"))
            case RunEnded(figures, tags, files, results):
                own = floats(figures, MLFLOW)
                self._lanes.put_last(
                    lambda writer: writer.finish(own, dict(tags), list(files), results)
                )

    def close(self) -> int:
        """Wait for the threads, at most some seconds if the server does not answer; the lost records.

        A thread that hangs is left alone: it ends with the process and delays nothing.
        """
        self._wait.end()
        self._lanes.close()
        if self._wait.for_threads(self._lanes.threads, LAST_TRIES_SECONDS, STUCK_SECONDS):
            return self._lost
        self._reason = self._reason or refusal.why_silent(self.uri)
        return self._lost + self._lanes.left

    @property
    def reason(self) -> str:
        """Why the last record that was lost could not be written, in words."""
        return self._reason

    def _progress(self, writer: "Writer", item: Item, metrics: dict[str, float], step: int) -> None:
        """Write an item's progress, unless the item has ended since: its history is written then."""
        if item.key not in self._committed:
            writer.progress(item, metrics, step)

    def _put(self, key: str, write: "Callable[[Writer], None]") -> None:
        self._lanes.put(key, write)

    def _do(self, write: "Callable[[Writer], None]") -> None:
        left = TRIES
        while True:
            tried = time.monotonic()
            found = self._written(write, left > 1)
            if found == "finished":
                return
            left -= found == "failed"
            if self._wait.is_over(tried, LAST_TRIES_SECONDS):
                self._away = True
                self._lose()
                return
            self._wait.pause(RETRY_SECONDS)

    def _lose(self) -> None:
        with self._lock:
            self._lost += 1

    def _written(self, write: "Callable[[Writer], None]", again: bool) -> Outcome:
        """Try to write a record.

        One whose error may pass has only ``failed`` where it may be tried ``again``, although MLflow
        answers by now: a server that has just come back took no record a moment ago.
        """
        if self._refused or self._away or self._wait.closed:
            self._lose()
            return "finished"
        if self._is_silent:
            return "silent"
        try:
            writer = self._connected()
            if writer is None:
                return "silent"
            write(writer)
            self._wait.moved()
        except (
            Exception
        ) as error:  # records must never stop a sweep; close() says how many were lost
            logging.getLogger(__name__).debug("record not written: %s", traceback_of(error))
            self._reason = refusal.reason_of(error)
            passing = refusal.may_pass(error)
            self._refused = self._writer is None and not passing
            if refusal.is_locked(error):
                return "silent"
            if not self._refused and not self._answers():
                self._fell_silent()
                return "silent"
            if passing and again:
                return "failed"
            self._lose()
        return "finished"

    def _connected(self) -> "Writer | None":
        """The writer, connected once for all threads; None where one has just tried in vain."""
        with self._connecting:
            if self._writer is None and not self._is_silent:
                try:
                    self._writer = self._connect()
                except Exception as error:
                    if refusal.may_pass(error):
                        self._fell_silent()
                    raise
            return self._writer

    @property
    def _is_silent(self) -> bool:
        """Whether another try is too early; after the end of the run none is."""
        return time.monotonic() < self._silent_until and not self._wait.ended

    def _fell_silent(self) -> None:
        self._silent_until = time.monotonic() + RETRY_SECONDS

    def _connect(self) -> "Writer":
        refusal.check_file(self.uri)
        # at first MLflow is imported, and a new database gets its tables; later tries are no news
        with nullcontext() if self._tried else self._wait.slow():
            self._tried = True
            writer = Writer(self._run, self.uri)
        writer.open(self._wait)
        return writer

    def _answers(self) -> bool:
        return self._writer is not None and self._writer.answers()
