"""Writes the MLflow runs of one raysae run: the parent, and a child for each trial and each site.

MLflow runs are found by tag; what such a run has already is not written again.
"""

import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType
from typing import Any

from raysae.identity import flat
from raysae.metrics import MLFLOW, floats
from raysae.printable import printable
from raysae.records import mlflow_refusal as refusal
from raysae.records.events import Item, Result
from raysae.records.folder import RunFolder
from raysae.records.mlflow_files import Artifacts, at_once, files_of
from raysae.records.mlflow_models import KEY_TAG, write_model
from raysae.records.mlflow_views import links, view_tags
from raysae.records.mlflow_wait import Calls, Wait
from raysae.redaction import redacted, traceback_of

SWEEP = "sweep"
ANALYSIS = "analysis/"
"""How the keys of an analysis's items, its metrics and its artifacts begin."""
LONGEST_TAG = 5000
"""Characters of a tag, at most: MLflow refuses longer ones."""
BATCH, PARAMETERS, PAGE = 1000, 100, 1000
"""Metrics of a call, parameters of a call, runs of an answer: as many as MLflow takes and gives."""

KINDS = {"trial": "trial", "atlas": "site"}
"""The tag ``kind`` of a child, by the beginning of its key."""
NOTE = "mlflow.note.content"
"""The tag that MLflow shows as a run's description, in Markdown."""
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
        self._unsure: set[str] = set()
        """Keys whose run may be there although MLflow did not answer when it was made."""
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
        self._artifacts = Artifacts(self.client, self.uri, wait)
        self.experiment = self._experiment(self.uri)
        own = {"kind": "sweep" if self.run.recipe.sweep.enabled else "atlas"}
        own[NOTE] = f"Views: {links(self.experiment)}"
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
        """Write an evaluation to the child run; at the first one its parameters, too."""
        with nullcontext() if item.key in self._runs else self._together(item.key):
            run_id = self._child(item)
            parameters = {} if item.key in self._begun else dict(item.parameters)
            self._log(run_id, parameters, [(metrics, step)])
        self._begun.add(item.key)

    def sae_done(self, item: Item, record: dict[str, Any], folder: Path) -> None:
        """Write a committed record to the child run, unless an earlier attempt did."""
        with nullcontext() if item.key in self._runs else self._together(item.key):
            run_id = self._child(item, record["started"])
            if run_id in self._finished or self._was_finished(run_id):
                return
            rows = [(floats(row, MLFLOW), row["step"]) for row in record["history"]]
            rows.append((floats({**record, **record["metrics"]}, MLFLOW), record["steps"]))
            self._log(run_id, {**_described(record), **record.get("parameters", {})}, rows)
            ended = int((record["started"] + record["seconds"]) * 1000)
            files = files_of(folder, "sae")
            copied = self._artifacts.copied(run_id, files)
            if copied:
                self.client.set_terminated(run_id, end_time=ended)
        if not copied:
            self._artifacts.send(run_id, files)
            self.client.set_terminated(run_id, end_time=ended)
        self._finished.add(run_id)

    @contextmanager
    def _together(self, key: str) -> Iterator[None]:
        """Write a run that is new in one transaction, where MLflow's database is written directly."""
        if f"{self.run.id}/{key}" in self._children:
            yield
            return
        client, together = self.client, None
        try:
            with client.one_transaction() as together:
                self.client = together or client
                yield
        except BaseException:
            if together is not None:
                self._forget(key)  # nothing of it is written
            raise
        finally:
            self.client = client

    def _forget(self, key: str) -> None:
        run_id = self._runs.pop(key, "")
        self._unsure.discard(key)
        self._look_again(run_id)

    def ended(self, item: Item, reason: str, status: str) -> None:
        """End the child run of an item that has no SAE."""
        run_id = self._child(item)
        parameters = {} if item.key in self._begun else dict(item.parameters)
        self._log(run_id, parameters, [], {"raysae.reason": reason})
        self.client.set_terminated(run_id, status)

    def analysed(self, phase: str, metrics: dict[str, float], folder: Path) -> None:
        """Write a phase's figures and files to the parent run."""
        self._metrics(self.parent, metrics, 0)
        self._artifacts.send(self.parent, files_of(folder, f"{ANALYSIS}{phase}"))

    def finish(
        self, metrics: dict[str, float], tags: dict[str, str], files: list[Path],
        results: Sequence[Result] = (),
    ) -> None:  # fmt: skip
        """End the parent run with its figures, tags and files, also where MLflow refuses the models."""
        sent = [
            pair for path in files for pair in files_of(path, path.name if path.is_dir() else "")
        ]
        jobs: list[Callable[[], None]] = [
            lambda: self._artifacts.send(self.parent, sent),
            lambda: self._end_figures(metrics, tags, results),
        ]
        try:
            at_once(self.uri, jobs)
        finally:
            self.client.set_terminated(self.parent)

    def _end_figures(
        self, metrics: dict[str, float], tags: dict[str, str], results: Sequence[Result]
    ) -> None:
        try:
            self._models(results)
        finally:
            self._log(self.parent, {}, [(metrics, 0)], tags)

    def _models(self, results: Sequence[Result]) -> None:
        """Make MLflow's models of the chosen SAE and of the atlas, which can be searched by metric."""
        at_once(self.uri, [partial(self._model, one) for one in results])

    def _model(self, result: Result) -> None:
        source = None if result.item is None else self._runs.get(result.item)
        is_new = self.parent not in self._earlier
        written = write_model(
            self.client, self.experiment, self.parent, self.run, result, source, is_new
        )
        for name, value in written.items():
            self._there(self.parent, name).add((0, value))

    def _experiment(self, uri: str) -> str:
        name = self.run.recipe.records.experiment
        found = self.client.get_experiment_by_name(name)
        views = view_tags(version("mlflow"))
        if found is not None:
            refusal.check_experiment(found)
            self._keep_views(found, views)
            return found.experiment_id
        local = uri.startswith("sqlite:///")
        place = (self.run.path.parent / "mlflow_artifacts").as_uri() if local else None
        return self.client.create_experiment(name, artifact_location=place, tags={**VIEW, **views})

    def _keep_views(self, experiment: Any, views: Mapping[str, str]) -> None:
        """Write the saved views that an experiment lacks, if this user may."""
        for key, text in views.items():
            if experiment.tags.get(key) != text:
                try:
                    self.client.set_experiment_tag(experiment.experiment_id, key, text)
                except Exception as error:
                    logging.getLogger(__name__).debug("view not written: %s", traceback_of(error))
                    return

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
            self._unsure.add(key)
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
            self._artifacts.note(made.info.run_id, made.info.artifact_uri)
            self._unsure.discard(key)
        return self._runs[key]

    def _found(self, key: str, tag: str) -> Any:
        """The run with this key that was there before; None when it is new."""
        if key != SWEEP and key not in self._unsure:
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
        self, run_id: str, parameters: dict[str, Any], rows: list[tuple[dict[str, float], int]],
        tags: Mapping[str, str] = MappingProxyType({}),
    ) -> None:  # fmt: skip
        """Write parameters, tags, and those metrics by step that the run does not have, in few calls."""
        from mlflow.entities import Metric, Param, RunTag

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
        told = [
            RunTag(key, printable(redacted(value))[:LONGEST_TAG]) for key, value in tags.items()
        ]
        for at in range(max(-(-len(new) // BATCH), -(-len(params) // PARAMETERS), bool(told))):
            part = new[at * BATCH : (at + 1) * BATCH]
            some = params[at * PARAMETERS : (at + 1) * PARAMETERS]
            try:
                self.client.log_batch(run_id, part, some, *([told] if told and not at else []))
            except Exception:
                self._look_again(run_id)
                raise
            for row in part:
                self._there(run_id, row.key).add((row.step, row.value))

    def _look_again(self, run_id: str) -> None:
        """Ask MLflow what the run has, after a call that may have written although no answer came."""
        self._earlier.add(run_id)
        self._values = {at: known for at, known in self._values.items() if at[0] != run_id}

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
