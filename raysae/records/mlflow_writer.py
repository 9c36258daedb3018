"""Writes the MLflow runs of one raysae run: the parent, and a child for each trial and each site.

MLflow runs are found by tag; what such a run has already is not written again.
"""

import json
import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from raysae.identity import flat
from raysae.metrics import MLFLOW, floats
from raysae.printable import printable
from raysae.records import mlflow_refusal as refusal
from raysae.records.events import Item, Result
from raysae.records.folder import RunFolder
from raysae.records.mlflow_models import KEY_TAG, write_model
from raysae.records.mlflow_wait import Calls, Wait
from raysae.redaction import redacted

SWEEP = "sweep"
ANALYSIS = "analysis/"
"""How the keys of an analysis's items, its metrics and its artifacts begin."""
LONGEST_TAG = 5000
"""Characters of a tag, at most: MLflow refuses longer ones."""
BATCH, PARAMETERS, PAGE = 1000, 100, 1000
"""Metrics of a call, parameters of a call, runs of an answer: as many as MLflow takes and gives."""

KINDS = {"trial": "trial", "atlas": "site"}
"""The tag ``kind`` of a child, by the beginning of its key."""
VIEW = {"mlflow.experimentKind": "custom_model_development"}
"""MLflow then opens the experiment on its training runs."""
DESCRIBING = ("sae.variant", "sae.d_sae", "sae.k", "training.lr", "seed")
"""Settings that every child has as a parameter, proposed or not, so that MLflow can filter by them."""


class Writer:
    """The MLflow runs of one raysae run, found again by tag."""

    def __init__(self, run: RunFolder, uri: str):
        for name in ("mlflow", "alembic", "sqlalchemy"):
            logging.getLogger(name).setLevel(logging.ERROR)
        from mlflow import MlflowClient

        self.run, self.uri = run, uri
        self.client: Any = MlflowClient(tracking_uri=uri)
        self._runs: dict[str, str] = {}
        self._places: dict[str, str] = {}
        """Where the artifacts of the runs are."""
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
        self.client, self._wait = Calls(self.client, wait), wait
        self.experiment = self._experiment(self.uri)
        own = {"kind": "sweep" if self.run.recipe.sweep.enabled else "atlas"}
        self.parent = self._find_or_create(SWEEP, self.run.recipe.name, own, self.run.started)
        self._parent_parameters()
        if self.parent in self._earlier:
            self._children = self._find_children()
        if self.run.recipe.records.system_metrics:
            watch_machine(self.parent, self.uri)

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
        with nullcontext() if item.key in self._runs else self._together(item.key):
            run_id = self._child(item, record["started"])
            if run_id in self._finished or self._was_finished(run_id):
                return
            rows = [(floats(row, MLFLOW), row["step"]) for row in record["history"]]
            rows.append((floats({**record, **record["metrics"]}, MLFLOW), record["steps"]))
            self._log(run_id, {**_described(record), **record.get("parameters", {})}, rows)
        self._send(run_id, folder)
        ended = record["started"] + record["seconds"]
        self.client.set_terminated(run_id, end_time=int(ended * 1000))
        self._finished.add(run_id)

    @contextmanager
    def _together(self, key: str) -> Iterator[None]:
        """Write a run that is new in one transaction, where MLflow's database is written directly."""
        if f"{self.run.id}/{key}" in self._children:
            yield
            return
        client = self.client
        try:
            with client.one_transaction() as together:
                self.client = together or client
                yield
        except BaseException:
            self._forget(key)  # nothing of it was written
            raise
        finally:
            self.client = client

    def _forget(self, key: str) -> None:
        run_id = self._runs.pop(key, None)
        self._values = {at: known for at, known in self._values.items() if at[0] != run_id}

    def _send(self, run_id: str, folder: Path) -> None:
        """Copy an SAE's files; to a folder on this machine without asking MLflow where it is."""
        place = self._places.get(run_id, "")
        if not place.startswith(("file:", "/")):
            self.client.log_artifacts(run_id, str(folder), "sae")
            return
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        with self._wait.slow():
            get_artifact_repository(place).log_artifacts(str(folder), "sae")

    def ended(self, item: Item, reason: str, status: str) -> None:
        """End the child run of an item that has no SAE."""
        run_id = self._child(item)
        self.client.set_tag(run_id, "raysae.reason", printable(redacted(reason))[:LONGEST_TAG])
        self.client.set_terminated(run_id, status)

    def analysed(self, phase: str, metrics: dict[str, float], folder: Path) -> None:
        """Write a phase's figures and files to the parent run."""
        self._metrics(self.parent, metrics, 0)
        self.client.log_artifacts(self.parent, str(folder), f"{ANALYSIS}{phase}")

    def finish(
        self, metrics: dict[str, float], tags: dict[str, str], files: list[Path],
        results: Sequence[Result] = (),
    ) -> None:  # fmt: skip
        """End the parent run with its figures, tags and files, also where MLflow refuses the models."""
        try:
            self._models(results)
        finally:
            self._finish(metrics, tags, files)

    def _models(self, results: Sequence[Result]) -> None:
        """Make MLflow's models of the chosen SAE and of the atlas, which can be searched by metric."""
        for one in results:
            source = None if one.item is None else self._runs.get(one.item)
            written = write_model(self.client, self.experiment, self.parent, self.run, one, source)
            for name, value in written.items():
                self._there(self.parent, name).add((0, value))

    def _finish(self, metrics: dict[str, float], tags: dict[str, str], files: list[Path]) -> None:
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
        return self.client.create_experiment(name, artifact_location=place, tags=VIEW)

    def _child(self, item: Item, started: float | None = None) -> str:
        tags = {"mlflow.parentRunId": self.parent, "kind": KINDS.get(item.key.split("/")[0], "")}
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
            self._places[made.info.run_id] = made.info.artifact_uri
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


def watch_machine(run_id: str, uri: str) -> None:
    """Write the load of this machine (processor, memory, disk, network, GPUs) to an MLflow run."""
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

    SystemMetricsMonitor(run_id, resume_logging=True, tracking_uri=uri).start()


def _described(record: dict[str, Any]) -> dict[str, Any]:
    """What a child is, as parameters: its settings, and of a site its place."""
    made = record.get("made", {})
    settings = {key: made[key] for key in DESCRIBING if made.get(key) is not None}
    return {
        **{key: record[key] for key in ("layer", "position", "hookpoint") if key in record},
        **settings,
    }
