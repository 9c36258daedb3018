"""How long each stage of a run will take, from short measurements in workers like those of the run.

What depends on the machine is measured while the forecast is made: the start of workers, a training of
the smallest and of the largest config, an evaluation, tokenizing, and the forward pass. What Tune, MLflow
and the report add is constant; ``scripts/forecast.py`` compares the whole with real runs.
"""

import math
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from raysae.cluster.placement import Placement
from raysae.cluster.worker import prepare_worker
from raysae.pipeline.estimate import configs_of
from raysae.pipeline.plan import RunPlan
from raysae.sae import SAEConfig
from raysae.sweep.trials.tuning import at_once
from raysae.training import Trainer, TrainingConfig
from raysae.training.rows import Rows

if TYPE_CHECKING:
    from raysae.extraction.plan import ExtractionPlan
    from raysae.transformer.sequence import TokenSequence

CALIBRATION_SECONDS = 1.0
"""Seconds for which a config is trained to measure its speed."""
CALIBRATION_ROWS = 8192
"""The most rows that it is trained on."""
CALIBRATION_TEXTS = 256
"""The most texts that are tokenized and run, to measure the extraction."""
CALIBRATION_WORKERS = 4
"""The most workers that are measured side by side."""
TUNE_SECONDS, TRIAL_SECONDS = 2.0, 0.35
"""What Tune takes at its start and end, and for a trial beside its training and its evaluations."""
SITE_SECONDS = 0.05
"""What a site of the atlas takes beside its training and its evaluations."""
FILE_SECONDS = 0.006
"""What a worker takes to write a small shard of a site, beside its bytes."""
WRITING_BYTES = 150e6
"""Bytes of activations a second that a worker writes, checksum included."""
REPORT_SECONDS = 1.1


@dataclass(frozen=True)
class Forecast:
    """Seconds of each stage; None where it is not known."""

    start: float
    extract: float | None
    sweep: float | None
    atlas: float | None
    report: float
    trainings: str
    """What the trainings' part was measured on."""

    @property
    def stages(self) -> dict[str, float | None]:
        """Seconds of each stage by its name."""
        names = ("start", "extract", "sweep", "atlas", "report")
        return {name: getattr(self, name) for name in names}

    @property
    def total(self) -> float | None:
        """Seconds of the whole run; None where a stage is not known."""
        parts = list(self.stages.values())
        return None if None in parts else sum(part or 0.0 for part in parts)


@dataclass(frozen=True)
class TrainingCost:
    """What one training takes, in seconds."""

    start: float
    tokens_per_second: float
    evaluation: float

    def seconds(self, tokens: int, evaluations: int) -> float:
        """Seconds of a training of so many tokens."""
        return self.start + tokens / self.tokens_per_second + evaluations * self.evaluation


@dataclass(frozen=True)
class _Job:
    """What a worker measures: the trainings ``configs`` on rows, or on noise ``[rows, d_in]``."""

    configs: tuple[tuple[SAEConfig, TrainingConfig], ...]
    d_in: int
    train_rows: int
    validation_rows: int
    rows: tuple[Tensor, Tensor] | None = None
    """Training and validation rows of a store; None for noise."""
    extraction: "ExtractionPlan | None" = None
    sequences: "tuple[TokenSequence, ...]" = ()


def forecast(plan: RunPlan, placement: Placement, start: float) -> Forecast:
    """The time of a run on the connected Ray; ``start`` is what the process took so far, in seconds."""
    count = _rows_of(plan)
    configs = _ends(plan)
    sequences = _first_texts(plan)
    job = _Job(
        tuple(configs), plan.needs.d_in, *(count or (CALIBRATION_ROWS, CALIBRATION_ROWS // 8)),
        _some_rows(plan), plan.extraction, tuple(sequences.found),
    )  # fmt: skip
    worker, costs, forward = _measured(job, placement)
    extract = 0.0 if plan.extraction is None else None
    if plan.extraction is not None and sequences.count is not None:
        extract = worker + sequences.seconds + _extraction(plan, sequences, forward, placement)
    trainings = _described(configs, costs, job)
    if count is None:
        return Forecast(start, extract, None, None, REPORT_SECONDS, trainings)
    each = [
        cost.seconds(training.training_tokens(count[0]), training.evaluations)
        for cost, (_, training) in zip(costs, configs, strict=True)
    ]
    return Forecast(
        start, extract, _sweep(plan, each, worker, placement),
        _atlas(plan, max(each), worker, placement), REPORT_SECONDS, trainings,
    )  # fmt: skip


def _described(
    configs: list[tuple[SAEConfig, TrainingConfig]], costs: list[TrainingCost], job: _Job
) -> str:
    speeds = ", ".join(
        f"{cost.tokens_per_second:,.0f} tokens/s at d_sae {sae.d_sae:,}"
        for (sae, _), cost in zip(configs, costs, strict=True)
    )
    rows = f"{len(job.rows[0]):,} rows" if job.rows else "noise, as the rows are not there yet"
    return f"{speeds}, measured on {rows}"


def _sweep(plan: RunPlan, each: list[float], worker: float, placement: Placement) -> float:
    recipe = plan.recipe
    members = recipe.sweep.seeds_per_trial * max(len(plan.sites), 1)
    trial = members * sum(each) / len(each) + TRIAL_SECONDS
    workers = at_once(recipe, placement, plan.proposer.lag)
    return TUNE_SECONDS + worker + trial * math.ceil(plan.proposer.trials / workers)


def _atlas(plan: RunPlan, each: float, worker: float, placement: Placement) -> float:
    sites = len(plan.atlas_sites)
    if not sites:
        return 0.0
    return worker + math.ceil(sites / placement.workers) * (each + SITE_SECONDS)


def _ends(plan: RunPlan) -> list[tuple[SAEConfig, TrainingConfig]]:
    """The smallest and the largest config of the search."""
    configs = sorted(
        map(plan.recipe.with_parameters, configs_of(plan.recipe, plan.needs.d_in)),
        key=lambda pair: (pair[0].d_sae, getattr(pair[0], "k", 0)),
    )
    return [configs[0], configs[-1]]


def _rows_of(plan: RunPlan) -> tuple[int, int] | None:
    """The training and the validation rows of a swept site; None where they are not known yet."""
    if plan.store is not None:
        rows = plan.store.entry(plan.sites[0]).rows
        return rows.train, rows.validation
    assert plan.extraction is not None
    source = plan.extraction.source
    if source.sequences is None:
        return None
    train = 1 - source.validation - source.test
    return max(int(source.sequences * train), 1), max(int(source.sequences * source.validation), 1)


@dataclass(frozen=True)
class _Texts:
    """The first texts as sequences, the number of all texts, and the seconds of tokenizing all."""

    found: "list[TokenSequence]"
    count: int | None
    seconds: float


def _first_texts(plan: RunPlan) -> _Texts:
    if plan.extraction is None:
        return _Texts([], None, 0.0)
    from raysae.extraction.sequences import first_sequences

    count = plan.extraction.source.sequences
    started = time.monotonic()
    found = first_sequences(plan.extraction, CALIBRATION_TEXTS)
    passed = time.monotonic() - started
    return _Texts(found, count, passed * (count or 0) / max(len(found), 1))


def _extraction(plan: RunPlan, texts: _Texts, forward: float, placement: Placement) -> float:
    """Seconds of forward passes and of writing."""
    from raysae.extraction.sequences import SHARD_TOKENS, SHARDS

    assert plan.extraction is not None and texts.count is not None
    tokens = texts.count * sum(map(len, texts.found)) / max(len(texts.found), 1)
    whole = texts.count / plan.extraction.source.sequences_per_shard
    shards = max(min(SHARDS, tokens / SHARD_TOKENS), whole)
    files = max(shards, 1) * len(plan.extraction.sites)
    writing = files * FILE_SECONDS + plan.needs.store_bytes / WRITING_BYTES
    return (tokens / forward + writing) / min(placement.workers, max(shards, 1))


def _some_rows(plan: RunPlan) -> tuple[Tensor, Tensor] | None:
    """The first training and validation rows of a swept site; None without a store."""
    if plan.store is None:
        return None
    site = plan.store.site(plan.sites[0])
    some = [
        rows.read(0, min(len(rows), CALIBRATION_ROWS)) for rows in (site.train, site.validation)
    ]
    return some[0], some[1]


def _measured(job: _Job, placement: Placement) -> tuple[float, list[TrainingCost], float]:
    """Seconds until workers are ready, the cost of each config, and tokens of a forward pass a second: in
    as many workers at a time as the run would have."""
    import ray

    workers = min(placement.workers, CALIBRATION_WORKERS)
    options = {"num_cpus": placement.cpus, "num_gpus": placement.gpus}
    started = time.monotonic()
    actors = [ray.remote(_Calibrator).options(**options).remote() for _ in range(workers)]
    ray.get([actor.ready.remote() for actor in actors])
    ready = time.monotonic() - started
    found = ray.get([actor.measure.remote(job) for actor in actors])
    for actor in actors:
        ray.kill(actor)
    costs = [
        TrainingCost(*(sum(values) / workers for values in zip(*cost, strict=True)))
        for cost in zip(*(one[0] for one in found), strict=True)
    ]
    return ready, costs, sum(one[1] for one in found) / workers


class _Calibrator:
    """A worker that trains and reads for a moment, and says how long that takes."""

    def __init__(self) -> None:
        self.device = prepare_worker()

    def ready(self) -> None:
        """Return when the worker can begin."""

    def measure(self, job: _Job) -> tuple[list[tuple[float, float, float]], float]:
        """The cost of each config as ``TrainingCost``'s fields, and tokens of a forward pass a second."""
        costs = [self._training(job, *config) for config in job.configs]
        return costs, self._forward(job) if job.extraction is not None and job.sequences else 1.0

    def _training(
        self, job: _Job, sae: SAEConfig, training: TrainingConfig
    ) -> tuple[float, float, float]:
        train, validation = self._rows(job)
        started = time.perf_counter()
        long = replace(training, tokens=10**12, evaluations=1)
        trainer = Trainer(sae, long, train, validation, device=self.device)
        start = time.perf_counter() - started
        began = time.perf_counter()
        for batch_BD in trainer.feed:
            trainer.take(batch_BD)
            if time.perf_counter() - began > CALIBRATION_SECONDS:
                break
        began = time.perf_counter()
        trainer.metrics()
        share = job.validation_rows / len(validation)
        evaluation = (time.perf_counter() - began) * max(share, 1.0)
        began = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            trainer.sae().save(Path(folder) / "sae")
        trainer.release()
        return start + time.perf_counter() - began, trainer.tokens_per_second, evaluation

    def _rows(self, job: _Job) -> tuple[Rows, Rows]:
        sizes = (min(rows, CALIBRATION_ROWS) for rows in (job.train_rows, job.validation_rows))
        train, validation = job.rows or (torch.randn(rows, job.d_in) for rows in sizes)
        return Rows(train), Rows(validation)

    def _forward(self, job: _Job) -> float:
        from raysae.extraction.shards import ShardExtractor

        plan = job.extraction
        assert plan is not None
        capturer = ShardExtractor(plan).capturer
        began = time.perf_counter()
        capturer.rows(job.sequences, plan.positions, plan.source.used_patterns)
        return sum(map(len, job.sequences)) / (time.perf_counter() - began)
