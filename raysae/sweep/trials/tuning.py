"""Running the trials: Ray Tune runs what the proposer proposes, and one table is written."""

import math
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from functools import partial, wraps
from pathlib import Path
from typing import Any

from ray import tune
from ray.exceptions import RayTaskError

from raysae.activations import Site, Store
from raysae.cluster.placement import Placement
from raysae.cluster.pool_worker import failure_of
from raysae.cluster.ray_internals import run_tune
from raysae.cluster.trial_names import named_tasks
from raysae.config.search import SweepConfig
from raysae.console.board import console
from raysae.extraction.plan import ExtractionPlan
from raysae.metrics import PROGRESS, TABLE, partly
from raysae.records.commit import figures_of, provenance, state_of
from raysae.records.events import Committed, Event, Events, Failed, Item, Progressed, Stopped
from raysae.records.folder import RunFolder
from raysae.records.products import stopping, trial_of
from raysae.records.rows import TrialRow
from raysae.records.run_files import STOPPED
from raysae.redaction import redacted
from raysae.sae.checkpoint import METRICS_FILE
from raysae.storage.files import read_json
from raysae.sweep.search.proposals import Proposer
from raysae.sweep.search.searcher import OrderedSearcher, Outcomes
from raysae.sweep.search.study import study_copied
from raysae.sweep.trials.gang import GANG
from raysae.sweep.trials.judge import Judge
from raysae.sweep.trials.opening import Demand, TrialRows, at_once, opened
from raysae.sweep.trials.trainable import SAETrials

HALVING = 3
"""ASHA lets one of this many trials continue."""


@dataclass(frozen=True)
class SweepJob:
    """What the trials share."""

    run: RunFolder
    store: Store
    sites: list[Site]
    proposer: Proposer
    placement: Placement
    events: Events
    live: ExtractionPlan | None = None
    """How live rows are computed; None of other stores."""
    judge: Judge | None = None
    """What measures the SAEs of a trial at its end, beside its trainings; None: nothing."""
    near_end: Callable[[], None] = lambda: None
    """Called once, when fewer trials are left than fit at a time."""

    @property
    def demand(self) -> Demand:
        """What the trials read."""
        return Demand(
            self.run.recipe, self.store, self.sites, self.placement, self.proposer.lag,
            self.proposer.trials, self.live, fresh=not self.run.holds("trials"),
        )  # fmt: skip

    def made(self, parameters: dict[str, Any]) -> dict[str, Any]:
        """What makes the trial with these parameters."""
        return trial_of(self.run.recipe, self.store.digest, self.sites, parameters)

    @property
    def where(self) -> str:
        """The sites in words, for the console."""
        return str(self.sites[0]) if len(self.sites) == 1 else f"{len(self.sites)} sites"


def run_trials(job: SweepJob, begun: Callable[[], None] = lambda: None) -> list[TrialRow]:
    """Run every trial and write ``trials.parquet``; returns its rows.

    ``begun`` is called when all is checked and the trials begin.

    Trials that were committed before only report. Raises UserError when the rows do not fit
    in memory in the way that ``resources`` asks for.
    """
    recipe = job.run.recipe
    watcher = _Watcher(job)
    with opened(job.demand) as rows_of_trials:
        begun()
        tuned = partial(_tuned, job, _trainable(job, rows_of_trials), watcher, rows_of_trials)
        with named_tasks(_named):
            results, ended_early = run_tune(tuned, recipe.resources, lambda: watcher.begun)
    rows = [row for result in results for row in _rows(job, result)]
    rows.sort(key=lambda row: row.trial)
    if ended_early:
        console.print(f"{len(rows)} of {recipe.sweep.trials} trials: {ended_early}")
    job.run.write_table(job.run.trials_file, rows)
    for alarm in (job.run.path / "trials").glob("*.hung-*.txt"):
        if not alarm.stat().st_size:  # of a worker that was killed, not hung
            alarm.unlink()
    return rows


def _named(config: Mapping[str, Any]) -> str:
    """The trials of a gang in words, for Ray's dashboard."""
    numbers = [str(asked["trial"]) for asked in config[GANG]]
    return f"trial {numbers[0]}" if len(numbers) == 1 else f"trials {', '.join(numbers)}"


def _trainable(job: SweepJob, opened: TrialRows) -> Any:
    """The trainable with all that its workers need, and what each reserves."""
    made = tune.with_resources(
        tune.with_parameters(
            SAETrials,
            recipe=job.run.recipe,
            sites=opened.sites,
            files=job.run.for_workers(),
            attempt=uuid.uuid4().hex[:8],
            store=job.store.digest,
            provenance={site: provenance(job.store, site) for site in job.sites},
            truth=job.store.known_truth(),
            judge=job.judge,
        ),
        opened.placement.resources,
    )
    made.__name__ = made.__qualname__ = SAETrials.__name__  # as Ray's dashboard shows it
    return made


def _tuned(
    job: SweepJob, trainable: Any, watcher: "_Watcher", opened: TrialRows
) -> tuple[Any, str | None]:
    """Tune's results, and why there are fewer than the recipe asks for (None if there are not).

    A proposer remembers what it has proposed, so each call copies the job's.
    """
    recipe, proposer = job.run.recipe, deepcopy(job.proposer)
    with study_copied(
        proposer, job.run.study_file, recipe.name, job.run.send, job.run.check_there
    ) as ended:
        searcher = OrderedSearcher(
            proposer, _budget(recipe.sweep), recipe.resources.gang, ended, opened.wave,
            opened.expect,
        )  # fmt: skip
        with job.events.work(f"Sweep at {job.where}", proposer.trials):
            watcher.together = (
                at_once(recipe, opened.placement, proposer.lag) * recipe.resources.gang
            )
            results = _tuner(job, trainable, searcher, proposer, watcher, opened.placement).fit()
    job.proposer.trials = proposer.trials  # fewer where the space holds no further config
    return results, searcher.ended_early


def _tuner(
    job: SweepJob, trainable: Any, searcher: OrderedSearcher, proposer: Proposer,
    watcher: "_Watcher", placement: Placement,
) -> tune.Tuner:  # fmt: skip
    recipe = job.run.recipe
    return tune.Tuner(
        trainable,
        tune_config=tune.TuneConfig(
            search_alg=searcher,
            scheduler=_scheduler(job),
            num_samples=math.ceil(proposer.trials / recipe.resources.gang),
            max_concurrent_trials=at_once(recipe, placement, proposer.lag),
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=str(_scratch(job.run.path)),
            callbacks=[watcher],
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            failure_config=tune.FailureConfig(max_failures=recipe.resources.retries),
            verbose=0,
            log_to_file=False,
        ),
    )


def _scheduler(job: SweepJob) -> Any:
    """The scheduler that stops poor trials early, by the objective over tokens; None for none."""
    recipe, sweep = job.run.recipe, job.run.recipe.sweep
    if sweep.early_stopping is None:
        return None
    (objective,) = sweep.objectives
    rows = job.store.entry(job.sites[0]).rows.train
    tokens = recipe.training.training_tokens(rows)
    common = {
        "time_attr": "tokens",
        "metric": objective.metric,
        "mode": objective.goal[:3],
        "grace_period": max(int(sweep.grace * tokens), 1),
    }
    if sweep.early_stopping == "asha":
        return tune.schedulers.ASHAScheduler(max_t=tokens + 1, reduction_factor=HALVING, **common)
    return tune.schedulers.MedianStoppingRule(min_samples_required=3, **common)


def _budget(sweep: SweepConfig) -> Any:
    """A function from the outcomes so far to why no further trial may begin (None: it may)."""
    started = time.monotonic()

    def spent(outcomes: Outcomes) -> str | None:
        seconds = time.monotonic() - started
        if sweep.max_seconds is not None and seconds > sweep.max_seconds:
            return f"sweep.max_seconds {sweep.max_seconds:g} have passed"
        tokens = sum((outcome or {}).get("tokens_trained", 0) for outcome in outcomes.values())
        if sweep.max_tokens is not None and tokens >= sweep.max_tokens:
            return f"{tokens:,} tokens were trained on; sweep.max_tokens is {sweep.max_tokens:,}"
        return None

    return spent


def _rows(job: SweepJob, result: Any) -> Iterator[TrialRow]:
    """The table's rows of a gang's trials."""
    reports = {report["trial"]: report for report in (result.metrics or {}).get(GANG, [])}
    for asked in (result.config or {})[GANG]:
        report = reports.get(asked["trial"], {})
        yield _row(job, asked["trial"], asked["parameters"], report, result.error)


def _row(
    job: SweepJob, number: int, parameters: dict[str, Any], last: Mapping[str, Any], error: Any
) -> TrialRow:
    """A trial's row: its settings, outcome and cost."""
    sae, training = job.run.recipe.with_parameters(parameters)
    record = job.run.committed(job.run.trial(number), job.made(parameters))
    settings = {
        "sae.variant": sae.variant,
        "sae.d_sae": sae.d_sae,
        f"sae.{sae.sparsity_key}": getattr(sae, sae.sparsity_key),
        **parameters,
        "training.lr": training.peak_lr(sae.d_sae),
        "training.batch_size": training.batch_size,
        "training.epochs": training.epochs,
    }
    ended = _end(last, error) if record is None else state_of(record)
    figures = partly(last, TABLE) if record is None else figures_of(record)
    return TrialRow(number, ended["state"], ended["reason"], settings, figures)


def _end(last: Mapping[str, Any], error: Any) -> dict[str, str]:
    """The state and reason of a trial without a commit."""
    if last.get("failed"):
        return {"state": "failed", "reason": str(last["failed"])}
    if isinstance(error, RayTaskError) and not last.get("stopped"):  # it raised; it was not lost
        cause = error.cause if isinstance(error.cause, Exception) else error
        return {"state": "failed", "reason": str(failure_of(cause).failed)}
    if error is not None and not last.get("stopped"):
        lines = redacted(str(error)).strip().splitlines()
        return {"state": "failed", "reason": f"worker lost: {lines[-1] if lines else 'no word'}"}
    if "step" in last:
        return {"state": "stopped", "reason": _why_stopped(last)}
    return {"state": "failed", "reason": "ended without a result"}


def _why_stopped(last: Mapping[str, Any]) -> str:
    at_step = f"early stopping, at step {last['step']} of {last['steps']}"
    return last.get("stopped") or at_step


def _scratch(run: Path) -> Path:
    """The folder for Tune's own files, which raysae does not read."""
    return run / ".ray"


def _harmless(method: Callable[..., None]) -> Callable[..., None]:
    """Print what ``method`` raises: an exception in a callback would end the whole sweep."""

    @wraps(method)
    def guarded(*args: Any, **kwargs: Any) -> None:
        try:
            method(*args, **kwargs)
        except Exception as error:
            console.print(f"a report was not shown or recorded: {error!r}", style="yellow")

    return guarded


class _Watcher(tune.Callback):
    """Emits the run's events from what Tune reports. Its own errors never stop a sweep."""

    def __init__(self, job: SweepJob):
        self.job = job
        self.ended: set[int] = set()
        """Trials whose end was emitted."""
        self.begun = False
        """Whether any trial has started."""
        self.together = 1
        """Trials that are trained at the same time, at most."""
        self._near_end = False

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles its callbacks to restore an experiment; raysae does not restore

    @_harmless
    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.begun = True

    @_harmless
    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        for asked, report in zip(trial.config[GANG], result[GANG], strict=True):
            if report.keys() > {"trial"} and report["trial"] not in self.ended:
                self.job.events.emit(self._event(asked, report))
                if report.get("done"):
                    self.ended.add(report["trial"])
        left = self.job.proposer.trials - len(self.ended)
        if 0 < left < self.together and not self._near_end:
            self._near_end = True
            self.job.near_end()

    @_harmless
    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Record trials that were stopped early, so that another attempt does not start them again."""
        reports = (trial.last_result or {}).get(GANG, [])
        for asked, report in zip(trial.config[GANG], reports, strict=False):
            self._note_stopped(asked, report)

    @_harmless
    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        for asked in trial.config[GANG]:
            if asked["trial"] not in self.ended:
                self.job.events.emit(Failed(self._item(asked), "worker lost"))

    def _item(self, asked: dict[str, Any]) -> Item:
        parameters = asked["parameters"]
        return self.job.run.trial_item(asked["trial"], parameters, self.job.made(parameters))

    def _event(self, asked: dict[str, Any], report: dict[str, Any]) -> Event:
        """The event for a trial's report."""
        item, folder = self._item(asked), self.job.run.trial(asked["trial"])
        if report.get("failed"):
            return Failed(item, report["failed"])
        if report.get("committed"):
            if not (folder / METRICS_FILE).is_file():  # committed on another node
                self.job.run.fetch(folder)
            record = read_json(folder / METRICS_FILE)
            return Committed(item, {**record, **partly(report, PROGRESS)}, folder)
        if report.get("stopped"):
            return Stopped(item, report["stopped"])
        fraction = report["step"] / report["steps"] if "steps" in report else 1.0
        return Progressed(item, report, 1.0 if report.get("done") else fraction)

    def _note_stopped(self, asked: dict[str, Any], last: dict[str, Any]) -> None:
        folder = self.job.run.trial(asked["trial"])
        if last.get("failed") or "step" not in last or (folder / METRICS_FILE).is_file():
            return
        made = {**self.job.made(asked["parameters"]), **stopping(self.job.run.recipe)}
        if self.job.run.stopped(folder, made) is not None:  # in an earlier attempt
            return
        plain = {key: value for key, value in last.items() if isinstance(value, int | float | str)}
        record = {**asked, "made": made, "reason": _why_stopped(last), "last": plain}
        self.job.run.write_json(folder.with_suffix(STOPPED), record)
        if asked["trial"] not in self.ended:
            self.job.events.emit(Stopped(self._item(asked), _why_stopped(last)))
