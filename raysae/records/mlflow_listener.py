"""MLflow records: a parent run for each sweep, and a child run for each trial and each site.

A thread of its own writes them, in order, so that a slow or dead tracking server never stops or
slows a sweep. While the server does not answer, records wait. Records that are still not written some
seconds after the end are counted as lost; the same command writes them later, because MLflow runs are
found by tag and the run folder holds every figure. What such a run has already is not written again.
"""

import logging
import math
import os
import queue
import threading
import time
from collections.abc import Callable
from contextlib import nullcontext

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
from raysae.records.mlflow_wait import STUCK_SECONDS, Wait
from raysae.records.mlflow_writer import ANALYSIS, Writer
from raysae.redaction import traceback_of, without_secret

RETRY_SECONDS = 2.0
"""Seconds between two tries at a server that does not answer."""
LAST_TRIES_SECONDS = 5.0
"""Seconds after the end of the run, or after the last record that was written since, for which MLflow
is tried."""


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
    """Writes to MLflow from its own thread, which also imports MLflow and connects to the server."""

    def __init__(self, run: RunFolder):
        self.uri = tracking_uri(run)
        self._run = run
        self._queue: queue.Queue[Callable[[Writer], None] | None] = queue.Queue()
        self._writer: Writer | None = None
        self._wait = Wait()
        self._tried = False
        self._lost = 0
        self._reason = ""
        self._committed: set[str] = set()
        """Items whose whole history comes with their last event."""
        self._refused = False
        """Whether MLflow takes no record at all, and waiting does not help."""
        self._away = False
        """Whether MLflow did not answer until the time was over."""
        self._thread = threading.Thread(target=self._work, name="raysae-mlflow", daemon=True)
        self._thread.start()

    def hear(self, event: Event) -> None:
        """Queue the event for the thread; returns at once."""
        match event:
            case Progressed(item, record) if "step" in record:
                metrics, step = floats(record, MLFLOW), record["step"]
                self._put(lambda writer: self._progress(writer, item, metrics, step))
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
                self._put(lambda writer: writer.analysed(phase, known, folder))
            case Committed(item, record, folder):
                self._committed.add(item.key)
                self._put(lambda writer: writer.sae_done(item, dict(record), folder))
            case Failed(item, reason):
                self._put(lambda writer: writer.ended(item, reason, "FAILED"))
            case Stopped(item, reason):
                self._put(lambda writer: writer.ended(item, reason, "KILLED"))
            case RunEnded(figures, tags, files, results):
                metrics = floats(figures, MLFLOW)
                self._put(lambda writer: writer.finish(metrics, dict(tags), list(files), results))

    def close(self) -> int:
        """Wait for the thread, at most some seconds if the server does not answer; the lost records.

        A thread that hangs is left alone: it ends with the process and delays nothing.
        """
        self._wait.end()
        self._queue.put(None)
        if self._wait.for_thread(self._thread, LAST_TRIES_SECONDS, STUCK_SECONDS):
            return self._lost
        self._reason = self._reason or refusal.why_silent(self.uri)
        return self._lost + self._queue.qsize()  # the mark of the end stands for the record in work

    @property
    def reason(self) -> str:
        """Why the last record that was lost could not be written, in words."""
        return self._reason

    def _progress(self, writer: "Writer", item: Item, metrics: dict[str, float], step: int) -> None:
        """Write an item's progress, unless the item has ended since: its history is written then."""
        if item.key not in self._committed:
            writer.progress(item, metrics, step)

    def _put(self, write: "Callable[[Writer], None]") -> None:
        self._queue.put(write)

    def _work(self) -> None:
        while (write := self._queue.get()) is not None:
            while not self._written(write):
                self._away = self._wait.is_over(LAST_TRIES_SECONDS)
                if self._away:
                    self._lost += 1
                    break
                time.sleep(RETRY_SECONDS)

    def _written(self, write: "Callable[[Writer], None]") -> bool:
        """Whether the record is finished: written, or refused. False if the server does not answer."""
        if self._refused or self._away or self._wait.closed:
            self._lost += 1
            return True
        try:
            self._writer = self._writer or self._connected()
            write(self._writer)
            self._wait.moved()
        except (
            Exception
        ) as error:  # records must never stop a sweep; close() says how many were lost
            logging.getLogger(__name__).debug("record not written: %s", traceback_of(error))
            self._reason = refusal.reason_of(error)
            self._refused = self._writer is None and not refusal.may_pass(error)
            if not self._refused and (refusal.is_locked(error) or not self._answers()):
                return False
            self._lost += 1
        return True

    def _connected(self) -> "Writer":
        refusal.check_file(self.uri)
        # at first MLflow is imported, and a new database gets its tables; later tries are no news
        with nullcontext() if self._tried else self._wait.slow():
            self._tried = True
            writer = Writer(self._run, self.uri)
        writer.open(self._wait)
        return writer

    def _answers(self) -> bool:
        return self._writer is not None and self._writer.answers()
