"""Train sparsify's SparseCoder: a part of scripts/bench_training.py.

    .peers/bin/python scripts/peers/train_sparsify.py ROWS.safetensors < JOBS

As train_saelens.py, with sparsify's loop over batches (sparsify/trainer.py), which in sparsify is bound
to a language model: its initialisation of the bias, its loss, norm keeping and optimizer.
"""

import time
from typing import Any

import torch
from sparsify import SparseCoder, SparseCoderConfig
from timing import TimedBatches, serve
from torch import Tensor


def train(rows_ND: Tensor, job: dict[str, Any]) -> dict[str, float]:
    """Train one SAE, save it, and say how long the training took."""
    torch.manual_seed(job["seed"])
    torch.set_num_threads(job["threads"])
    config = SparseCoderConfig(num_latents=job["d_sae"], k=job["k"])
    sae = SparseCoder(rows_ND.shape[1], config, device="cpu", dtype=torch.float32)
    optimizer = torch.optim.Adam(sae.parameters(), lr=job["lr"])
    steps = len(rows_ND) // job["batch"]
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: share(step, steps, job))
    started = time.perf_counter()
    timed = TimedBatches(rows_ND, job["batch"], job["timed_from"])
    for step, x_BD in enumerate(timed):
        if step == 0:
            sae.b_dec.data = x_BD.mean(0)
        sae.set_decoder_norm_to_unit_norm()
        sae(x_BD).fvu.backward()
        sae.remove_gradient_parallel_to_decoder_directions()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    speed = timed.tokens_per_second()
    sae.save_to_disk(job["out"])
    return {"seconds": time.perf_counter() - started, "tokens_per_second": speed}


def share(step: int, steps: int, job: dict[str, Any]) -> float:
    """The share of the peak learning rate, with the warm-up and the decay that all sides have."""
    rising = (step + 1) / (job["warm_up"] * steps)
    return min(1.0, rising, (steps - step) / (job["decay"] * steps))


if __name__ == "__main__":
    serve(train)
