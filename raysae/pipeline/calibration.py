"""What a training costs in this machine's workers: measured by the same code, for some seconds."""

import tempfile
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean

import torch
from torch import Tensor

from raysae.cluster.placement import Placement
from raysae.cluster.worker import prepare_worker
from raysae.records.commit import commit
from raysae.records.run_files import RunFiles
from raysae.sae import SAEConfig
from raysae.training import Trainer, TrainingConfig
from raysae.training.alone import step_alone
from raysae.training.rows import Rows

TRAIN_SECONDS = 0.7
"""Seconds that each config is trained, after its first batch."""
WAIT_SECONDS = 120
"""Seconds to wait for workers before nothing can be said."""
Config = tuple[SAEConfig, TrainingConfig]


@dataclass(frozen=True)
class Cost:
    """What one training costs a worker, in seconds apart from the speed."""

    begin: float
    """Until the first batch: weights, statistics of the rows."""
    tokens_per_second: float
    evaluation: float
    """One pass over the validation rows."""
    commit: float
    """The last figures and the files."""

    def seconds(self, tokens: int, evaluations: int) -> float:
        """Seconds of a training of so many tokens with so many evaluations."""
        trained = tokens / self.tokens_per_second
        return self.begin + trained + evaluations * self.evaluation + self.commit

    def between(self, other: "Cost", place: float) -> "Cost":
        """The cost of a config between this one (``place`` 0) and another (1)."""

        def at(one: float, two: float) -> float:
            return one + (two - one) * place

        return Cost(
            at(self.begin, other.begin),
            1 / at(1 / self.tokens_per_second, 1 / other.tokens_per_second),
            at(self.evaluation, other.evaluation),
            at(self.commit, other.commit),
        )


@dataclass(frozen=True)
class Calibration:
    """Measurements in as many workers as will train at the same time."""

    worker_start: float
    """Seconds until all new workers have imported what a training needs."""
    warm_up: float
    """Seconds that a worker's first batch takes longer than its others."""
    costs: list[Cost]
    """The cost of each config."""


def calibrate(
    configs: Sequence[Config], train: Tensor, validation: Tensor, scale: float, placement: Placement,
    workers: int,
) -> Calibration | None:  # fmt: skip
    """Train each config for a moment in ``workers`` new workers at the same time.

    ``train`` and ``validation`` are ``[rows, d_in]``; an evaluation takes ``scale`` times as long as one
    over ``validation``. None when no worker is free.
    """
    import ray

    own = {"env_vars": {"RAYSAE_MEASURING": uuid.uuid4().hex}}  # else an idle worker is taken
    started = time.monotonic()
    actors = [
        ray.remote(_Calibrator).options(**placement.ray_options, runtime_env=own).remote()
        for _ in range(workers)
    ]
    try:
        ray.get([actor.ready.remote() for actor in actors], timeout=WAIT_SECONDS)
        worker_start = time.monotonic() - started
        rows = ray.put((train, validation))
        measured = [actor.measure.remote(list(configs), rows) for actor in actors]
        found = ray.get(measured, timeout=WAIT_SECONDS)
    except (ray.exceptions.GetTimeoutError, ray.exceptions.RayError):
        return None
    finally:
        for actor in actors:
            ray.kill(actor)
    warm_up = fmean(warm for warm, _ in found)
    costs = [_mean([costs[number] for _, costs in found]) for number in range(len(configs))]
    return Calibration(
        worker_start, warm_up, [replace(one, evaluation=one.evaluation * scale) for one in costs]
    )


class _Calibrator:
    """A worker that trains configs for a moment."""

    def __init__(self) -> None:
        import raysae.atlas.worker  # noqa: F401  (what a worker of the atlas imports)

        self.device = prepare_worker()

    def ready(self) -> None:
        """Return when the worker has started."""

    def measure(
        self, configs: Sequence[Config], rows: tuple[Tensor, Tensor]
    ) -> tuple[float, list[Cost]]:
        """How much longer the first batch took, and the cost of each config."""
        train, validation = (Rows(part).to(self.device) for part in rows)
        warm_ups, costs = [], []
        for sae, training in configs:
            warm_up, cost = _measured(sae, training, train, validation, self.device)
            warm_ups.append(warm_up)
            costs.append(cost)
        return warm_ups[0], costs


def _measured(
    sae: SAEConfig, training: TrainingConfig, train: Rows, validation: Rows, device: str
) -> tuple[float, Cost]:
    endless = replace(training, tokens=10**12, evaluations=1)
    began = time.perf_counter()
    trainer = Trainer(sae, endless, train, validation, device=device)
    begin, batches = time.perf_counter() - began, iter(trainer.feed)
    take = _waited_for(step_alone(trainer), device)
    started = time.perf_counter()
    take(next(batches))
    first, started, before = time.perf_counter() - started, time.perf_counter(), trainer.tokens
    for batch_BD in batches:
        take(batch_BD)
        passed = time.perf_counter() - started
        if passed > TRAIN_SECONDS:
            break
    speed = (trainer.tokens - before) / passed
    started = time.perf_counter()
    trainer.metrics()
    evaluation = time.perf_counter() - started
    cost = Cost(begin, speed, evaluation, _commit_seconds(trainer))
    return max(first - training.batch_size / speed, 0.0), cost


def _waited_for(step: Callable[[Tensor], object], device: str) -> Callable[[Tensor], object]:
    """The same step, which waits until the device is done with it."""
    if torch.device(device).type != "cuda":
        return step

    def take(batch_BD: Tensor) -> None:
        step(batch_BD)
        torch.cuda.synchronize(device)

    return take


def _commit_seconds(trainer: Trainer) -> float:
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        commit(RunFiles(Path(folder)), trainer, Path(folder) / "sae", {}, {}, [], time.time())
        return time.perf_counter() - started


def _mean(costs: Sequence[Cost]) -> Cost:
    return Cost(
        fmean(one.begin for one in costs),
        len(costs) / sum(1 / one.tokens_per_second for one in costs),
        fmean(one.evaluation for one in costs),
        fmean(one.commit for one in costs),
    )
