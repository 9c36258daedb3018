"""MLflow records: a parent run for each sweep, and a child run for each trial and each site.

A thread of its own writes them, in order, so that a slow or dead tracking server never stops or
slows a sweep. While the server does not answer, records wait. Records that are still not written some
seconds after the end are counted as lost; the same command writes them later, because MLflow runs are
found by tag and the run folder holds every figure. What such a run has already is not written again.
"""

import json
import logging
import math
import os
import queue
import threading
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from raysae.identity import flat
from raysae.metrics import MLFLOW, floats
from raysae.printable import printable
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
from raysae.records.mlflow_wait import STUCK_SECONDS, Calls, Wait
from raysae.redaction import redacted, traceback_of, without_secret

KEY_TAG = "raysae.key"
SWEEP = "sweep"
ANALYSIS = "analysis/"
"""How the keys of an analysis's items, its metrics and its artifacts begin."""
LONGEST_TAG = 5000
"""Characters of a tag, at most: MLflow refuses longer ones."""
BATCH, PARAMETERS, PAGE = 1000, 100, 1000
"""Metrics of a call, parameters of a call, runs of an answer: as many as MLflow takes and gives."""
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
        self._queue: queue.Queue[Callable[[_Writer], None] | None] = queue.Queue()
        self._writer: _Writer | None = None
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
            case RunEnded(figures, tags, files):
                metrics = floats(figures, MLFLOW)
                self._put(lambda writer: writer.finish(metrics, dict(tags), list(files)))

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

    def _progress(
        self, writer: "_Writer", item: Item, metrics: dict[str, float], step: int
    ) -> None:
        """Write an item's progress, unless the item has ended since: its history is written then."""
        if item.key not in self._committed:
            writer.progress(item, metrics, step)

    def _put(self, write: "Callable[[_Writer], None]") -> None:
        self._queue.put(write)

    def _work(self) -> None:
        while (write := self._queue.get()) is not None:
            while not self._written(write):
                self._away = self._wait.is_over(LAST_TRIES_SECONDS)
                if self._away:
                    self._lost += 1
                    break
                time.sleep(RETRY_SECONDS)

    def _written(self, write: "Callable[[_Writer], None]") -> bool:
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

    def _connected(self) -> "_Writer":
        refusal.check_file(self.uri)
        # at first MLflow is imported, and a new database gets its tables; later tries are no news
        with nullcontext() if self._tried else self._wait.slow():
            self._tried = True
            writer = _Writer(self._run, self.uri)
        writer.open(self._wait)
        return writer

    def _answers(self) -> bool:
        return self._writer is not None and self._writer.answers()


class _Writer:
    """The MLflow runs of one raysae run, found again by tag."""

    def __init__(self, run: RunFolder, uri: str):
        for name in ("mlflow", "alembic", "sqlalchemy"):
            logging.getLogger(name).setLevel(logging.ERROR)
        from mlflow import MlflowClient

        self.run, self.uri = run, uri
        self.client: Any = MlflowClient(tracking_uri=uri)
        self._runs: dict[str, str] = {}
        self._begun: set[str] = set()
        self._earlier: set[str] = set()
        """Ids of runs that were there before, with some of their records."""
        self._children: dict[str, Any] = {}
        """The runs of trials and sites that were there before, by key."""
        self._finished: set[str] = set()
        """Ids of runs that this attempt has ended."""
        self._values: dict[tuple[str, str], set[tuple[int, float]]] = {}
        """What the runs have: by run and metric, its steps and values."""

    def open(self, wait: Wait) -> None:
        """Find or make the experiment and the parent run. From here on, ``wait`` notes every call."""
        self.client = Calls(self.client, wait)
        self.experiment = self._experiment(self.uri)
        self.parent = self._find_or_create(SWEEP, self.run.recipe.name, {}, self.run.started)
        self._parent_parameters()
        if self.parent in self._earlier:
            self._children = self._find_children()

    def answers(self) -> bool:
        """Whether the server answers."""
        try:
            self.client.search_experiments(max_results=1)
        except Exception:
            return False
        return True

    def progress(self, item: Item, metrics: dict[str, float], step: int) -> None:
        run_id = self._child(item)
        if item.key not in self._begun:
            self._parameters(run_id, dict(item.parameters))
            self._begun.add(item.key)
        self._metrics(run_id, metrics, step)

    def sae_done(self, item: Item, record: dict[str, Any], folder: Path) -> None:
        """Write a committed record to the child run, unless an earlier attempt did."""
        run_id = self._child(item, record["started"])
        if run_id in self._finished or self._was_finished(run_id):
            return
        rows = [(floats(row, MLFLOW), row["step"]) for row in record["history"]]
        rows.append((floats({**record, **record["metrics"]}, MLFLOW), record["steps"]))
        self._log(run_id, record.get("parameters", {}), rows)
        self.client.log_artifacts(run_id, str(folder), "sae")
        ended = record["started"] + record["seconds"]
        self.client.set_terminated(run_id, end_time=int(ended * 1000))
        self._finished.add(run_id)

    def ended(self, item: Item, reason: str, status: str) -> None:
        """End the child run of an item that has no SAE."""
        run_id = self._child(item)
        self.client.set_tag(run_id, "raysae.reason", printable(redacted(reason))[:LONGEST_TAG])
        self.client.set_terminated(run_id, status)

    def analysed(self, phase: str, metrics: dict[str, float], folder: Path) -> None:
        """Write a phase's figures and files to the parent run."""
        self._metrics(self.parent, metrics, 0)
        self.client.log_artifacts(self.parent, str(folder), f"{ANALYSIS}{phase}")

    def finish(self, metrics: dict[str, float], tags: dict[str, str], files: list[Path]) -> None:
        self._metrics(self.parent, metrics, 0)
        for name, value in tags.items():
            self.client.set_tag(self.parent, name, printable(redacted(value))[:LONGEST_TAG])
        for path in files:
            if path.is_dir():
                self.client.log_artifacts(self.parent, str(path), path.name)
            else:
                self.client.log_artifact(self.parent, str(path))
        self.client.set_terminated(self.parent)

    def _experiment(self, uri: str) -> str:
        name = self.run.recipe.records.experiment
        found = self.client.get_experiment_by_name(name)
        if found is not None:
            refusal.check_experiment(found)
            return found.experiment_id
        local = uri.startswith("sqlite:///")
        place = (self.run.path.parent / "mlflow_artifacts").as_uri() if local else None
        return self.client.create_experiment(name, artifact_location=place)

    def _child(self, item: Item, started: float | None = None) -> str:
        tags = {"mlflow.parentRunId": self.parent}
        return self._find_or_create(item.key, item.name, tags, started)

    def _find_or_create(
        self, key: str, name: str, tags: dict[str, str], started: float | None
    ) -> str:
        if key not in self._runs:
            tag = f"{self.run.id}/{key}"
            found = self._found(key, tag)
            start_time = int((started or time.time()) * 1000)
            made = (
                found
                if found is not None
                else self.client.create_run(
                    self.experiment, start_time, {KEY_TAG: tag, **tags}, run_name=name
                )
            )
            if found is not None:
                self._earlier.add(made.info.run_id)
            if not (made.inputs and made.inputs.dataset_inputs):
                self._dataset(made.info.run_id)
            self._runs[key] = made.info.run_id
        return self._runs[key]

    def _found(self, key: str, tag: str) -> Any:
        """The run with this key that was there before; None when it is new."""
        if key != SWEEP:
            return self._children.get(tag)
        found = self.client.search_runs(
            [self.experiment], f"tags.`{KEY_TAG}` = '{tag}'", max_results=1
        )
        return found[0] if found else None

    def _find_children(self) -> dict[str, Any]:
        """All runs of trials and sites that the parent has, by tag; one search for a thousand."""
        there: dict[str, Any] = {}
        page = None
        while True:
            found = self.client.search_runs(
                [self.experiment], f"tags.`mlflow.parentRunId` = '{self.parent}'",
                max_results=PAGE, page_token=page,
            )  # fmt: skip
            there |= {one.data.tags.get(KEY_TAG, ""): one for one in found}
            page = getattr(found, "token", None)
            if not page:
                return there

    def _was_finished(self, run_id: str) -> bool:
        """Whether the run is one of an earlier attempt that has ended it."""
        if run_id not in self._earlier:
            return False
        return self.client.get_run(run_id).info.status == "FINISHED"

    def _dataset(self, run_id: str) -> None:
        """Name the store as the run's input, so that runs on the same data can be found."""
        from mlflow.entities import Dataset, DatasetInput

        digest = self.run.store_digest[:12]
        place = str(self.run.recipe.store_place).partition("?")[0].rstrip("/")
        source = json.dumps({"path": redacted(place)})
        name = printable(place.rpartition("/")[2])
        store = Dataset(name, digest, "local", source)
        self.client.log_inputs(run_id, [DatasetInput(store)])

    def _parent_parameters(self) -> None:
        known = set(self.client.get_run(self.parent).data.params)
        settings = flat(self.run.recipe.dump())
        self._parameters(self.parent, {k: v for k, v in settings.items() if k not in known})

    def _parameters(self, run_id: str, parameters: dict[str, Any]) -> None:
        self._log(run_id, parameters, [])

    def _metrics(self, run_id: str, metrics: dict[str, float], step: int) -> None:
        self._log(run_id, {}, [(metrics, step)])

    def _log(
        self, run_id: str, parameters: dict[str, Any], rows: list[tuple[dict[str, float], int]]
    ) -> None:
        """Write parameters, and metrics with their steps that the run does not have, in few calls."""
        from mlflow.entities import Metric, Param

        params = [
            Param(key, printable(redacted(str(value)))[:500]) for key, value in parameters.items()
        ]
        now = int(time.time() * 1000)
        new = [
            Metric(key, value, now, step)
            for metrics, step in rows
            for key, value in metrics.items()
            if (step, value) not in self._there(run_id, key)
        ]
        for at in range(max(-(-len(new) // BATCH), -(-len(params) // PARAMETERS))):
            part = new[at * BATCH : (at + 1) * BATCH]
            some = params[at * PARAMETERS : (at + 1) * PARAMETERS]
            self.client.log_batch(run_id, metrics=part, params=some)
            for row in part:
                self._there(run_id, row.key).add((row.step, row.value))

    def _there(self, run_id: str, key: str) -> set[tuple[int, float]]:
        """Steps and values of a metric that the run has already, from this attempt or an earlier one."""
        if (run_id, key) not in self._values:
            earlier = run_id in self._earlier
            history = self.client.get_metric_history(run_id, key) if earlier else []
            self._values[run_id, key] = {(one.step, one.value) for one in history}
        return self._values[run_id, key]
