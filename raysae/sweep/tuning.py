"""Running the trials: Ray Tune around the proposer, one site read for all, one table out."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray import tune

from raysae.activations import Site, Store
from raysae.activations.reading import OpenSite, check_windows, choose_reading, open_site
from raysae.board import Board, console, figures
from raysae.cluster.placement import Placement, place_streaming
from raysae.files import read_json
from raysae.records.commit import COST_COLUMNS, committed, provenance, state_of
from raysae.records.folder import RunFolder
from raysae.records.tables import write_table
from raysae.records.tracking import Recorder
from raysae.sae.checkpoint import METRICS_FILE
from raysae.sweep.proposals import make_proposer
from raysae.sweep.searcher import OrderedSearcher
from raysae.sweep.trial import SAETrial


@dataclass(frozen=True)
class SweepJob:
    """What the trials share."""

    run: RunFolder
    store: Store
    site: Site
    fingerprint: str
    placement: Placement
    recorder: Recorder


def run_trials(job: SweepJob) -> list[dict[str, Any]]:
    """Run every trial (those committed before only report) and write ``trials.parquet``; its rows."""
    proposer = make_proposer(job.run.recipe)
    watcher = _Watcher(job, proposer.trials)
    site, placement = _open_site(job, proposer.lag)
    trainable = tune.with_resources(
        tune.with_parameters(
            SAETrial,
            recipe=job.run.recipe,
            site=site,
            run_path=job.run.path,
            fingerprint=job.fingerprint,
            provenance=provenance(job.store, job.site),
            truth=job.store.truth(),
        ),
        placement.resources,
    )
    with watcher.board:
        results = tune.Tuner(
            trainable,
            tune_config=tune.TuneConfig(
                search_alg=OrderedSearcher(proposer),
                num_samples=proposer.trials,
                max_concurrent_trials=min(placement.workers, proposer.lag),
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(
                name="tune",
                storage_path=str(_scratch(job.run.path)),
                callbacks=[watcher],
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
                verbose=0,
                log_to_file=False,
            ),
        ).fit()
    rows = [_row(job, result.config or {}, result) for result in results]
    rows.sort(key=lambda row: row["trial"])
    write_table(job.run.trials_file, rows)
    return rows


def _open_site(job: SweepJob, most: int) -> tuple[OpenSite, Placement]:
    """The site's rows by the path that suits them, and what a trial reserves on that path."""
    recipe = job.run.recipe
    reading = choose_reading(job.store, job.site, recipe.resources)
    placement = job.placement
    if reading.how == "streaming":
        placement = place_streaming(recipe.resources)
        rows = job.store.entry(job.site).rows.train
        at_once = min(placement.workers, most)
        check_windows(job.store, recipe.training.shuffle_rows, rows, at_once)
    console.print(f"Reading: {reading}; trials: {placement}")
    return open_site(reading, job.store, job.site), placement


def _row(job: SweepJob, config: dict[str, Any], result: Any) -> dict[str, Any]:
    """A trial's row: what was asked, what came out, what it cost."""
    number, parameters = config["trial"], config["parameters"]
    asked = {"trial": number, "parameters": parameters, "fingerprint": job.fingerprint}
    record = committed(job.run.trial(number), asked)
    sae, training = job.run.recipe.with_parameters(parameters)
    row = {
        "trial": number,
        **({"state": "failed", "reason": _why(result)} if record is None else state_of(record)),
        "sae.variant": sae.variant,
        "sae.d_sae": sae.d_sae,
        f"sae.{sae.sparsity_key}": getattr(sae, sae.sparsity_key),
        **parameters,
        "training.lr": training.peak_lr(sae.d_sae),
        "training.batch_size": training.batch_size,
        "training.epochs": training.epochs,
    }
    if record is not None:
        row |= {**record["metrics"], **{key: record.get(key) for key in COST_COLUMNS}}
    return row


def _why(result: Any) -> str:
    if result.error is not None:
        return f"worker lost: {str(result.error).splitlines()[0]}"
    return str((result.metrics or {}).get("failed", "ended without a result"))


def _scratch(run: Path) -> Path:
    """Where Tune keeps its own bookkeeping, which nothing of ours reads."""
    return run / ".ray"


class _Watcher(tune.Callback):
    """Shows and records what Tune reports. Its own troubles never stop a sweep."""

    def __init__(self, job: SweepJob, trials: int):
        self.job = job
        self.board = Board(f"Sweep at {job.site}", trials)

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles its callbacks to restore an experiment, which we never do

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        number, parameters = trial.config["trial"], trial.config["parameters"]
        share = result["step"] / result["steps"] if "steps" in result else 1.0
        cells = {key.split(".")[-1]: str(value) for key, value in parameters.items()}
        cells |= {"failed": result["failed"]} if result.get("failed") else figures(result)
        self.board.update(f"trial {number}", cells, 1.0 if result.get("done") else share)
        self._record(number, parameters, result)

    def _record(self, number: int, parameters: dict[str, Any], result: dict[str, Any]) -> None:
        recorder, folder = self.job.recorder, self.job.run.trial(number)
        key, name = f"trial/{number:03d}", f"trial {number}"
        if result.get("failed"):
            recorder.failed(key, name, result["failed"])
        elif result.get("done"):
            recorder.sae_done(key, name, read_json(folder / METRICS_FILE), folder)
        else:
            recorder.trial_progress(key, name, parameters, result)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        number = trial.config["trial"]
        self.board.update(f"trial {number}", {"failed": "worker lost"}, 1.0)
        self.job.recorder.failed(f"trial/{number:03d}", f"trial {number}", "worker lost")
