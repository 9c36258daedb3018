"""Train SAEs with SAELens's own trainer, for scripts/compare_saelens.py and scripts/bench_training.py.

    .peers/bin/python scripts/peers/train_saelens.py ROWS.safetensors < JOBS

In the environment of scripts/peers.sh, where raysae is not. ``batches`` in the file are the training
rows in their order. A line of standard input is a job in JSON; each SAE is saved for inference in the
job's ``out``, and how long its training took is a line of standard output, in JSON.
"""

import time
from collections.abc import Iterator
from typing import Any

import torch
from sae_lens import (
    BatchTopKTrainingSAE,
    BatchTopKTrainingSAEConfig,
    TopKTrainingSAE,
    TopKTrainingSAEConfig,
)
from sae_lens.config import SAETrainerConfig
from sae_lens.training.sae_trainer import SAETrainer
from timing import TimedBatches, serve
from torch import Tensor

VARIANTS = {
    "topk": (TopKTrainingSAE, TopKTrainingSAEConfig),
    "batch_topk": (BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig),
}
NORM_BATCHES = 64
"""Batches from which it estimates the scale of the input."""


def train(rows_ND: Tensor, job: dict[str, Any]) -> dict[str, float]:
    """Train one SAE, save it, and say how long the training took.

    Its losses, coefficients and initialisation are SAELens's defaults.
    """
    torch.manual_seed(job["seed"])
    torch.set_num_threads(job.get("threads", 1))
    sae_class, config_class = VARIANTS[job["variant"]]
    sae = sae_class(
        config_class(
            d_in=rows_ND.shape[1],
            d_sae=job["d_sae"],
            k=job["k"],
            normalize_activations=job["normalize"],
        )
    )
    head = NORM_BATCHES if job["normalize"] == "expected_average_only_in" else 0
    timed = TimedBatches(rows_ND, job["batch"], job.get("timed_from", 0))
    trainer = SAETrainer(trainer_config(rows_ND, job), sae, provider(timed, head))
    started = time.perf_counter()
    trained = trainer.fit()
    speed = timed.tokens_per_second()
    trained.save_inference_model(job["out"])
    return {"seconds": time.perf_counter() - started, "tokens_per_second": speed}


def trainer_config(rows_ND: Tensor, job: dict[str, Any]) -> SAETrainerConfig:
    """The job's schedule, and its own count of steps after which a latent is dead: runs are short."""
    steps = len(rows_ND) // job["batch"]
    return SAETrainerConfig(
        total_training_samples=steps * job["batch"],
        train_batch_size_samples=job["batch"],
        lr=job["lr"],
        lr_end=job["lr"],
        lr_warm_up_steps=round(job["warm_up"] * steps),
        lr_decay_steps=round(job["decay"] * steps),
        dead_feature_window=job["dead_window"],
        autocast=job.get("autocast", False),
        n_batches_for_norm_estimate=NORM_BATCHES,
    )


def provider(timed: TimedBatches, head: int) -> Iterator[Tensor]:
    """The first ``head`` batches, which only the scale is estimated from; then all of them."""
    yield from (timed.batches[number % len(timed.batches)] for number in range(head))
    yield from timed


if __name__ == "__main__":
    serve(train)
