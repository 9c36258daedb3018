"""72 SAEs, each on its own rows (R3 of the published runs: 12 layers x 6 positions), together.

    python scripts/bench_packing.py [--saes 72] [--repeats 3] [--types bfloat16] [--device cuda]

d_in 768, d_sae 512, k 150, 800 training and 200 validation rows each, batch 256, 25 epochs. Ways:

- fit_many: ``raysae.fit_many`` with everything: input scale, decoder bias, shuffling, metrics;
- one by one: ``raysae.fit``, one after another;
- bare loop: only the same updates, on batches prepared before; one SAE after another with all
  threads, and one SAE per thread. The faster of the two is the reference;
- torch: ``fit`` with plain torch instead of the compiled step, for a few SAEs, extrapolated to all.

Each repeat runs all ways one after another. Times are medians; ratios are medians of the repeats'
ratios.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch
from bench_training import Shape, rows_of
from machine import machine, synchronize
from torch import Tensor

import raysae
from raysae.sae import SAE, build_sae, sae_config
from raysae.training import TrainingConfig
from raysae.training.compiled import step_of
from raysae.training.rows import Rows

SHAPE = Shape(768, 512, 150, 256, steps=100)
CONFIG = {"variant": "topk", "d_sae": SHAPE.d_sae, "k": SHAPE.k}
TRAIN, VALIDATION, EPOCHS = 800, 200, 25
SLOW = 4
"""Number of SAEs that a slow way trains; its time is extrapolated to all."""


def settings(precision: str, **more: bool) -> TrainingConfig:
    """The training config of every way."""
    return TrainingConfig(
        batch_size=SHAPE.batch, epochs=EPOCHS, lr=1e-3, precision=precision, evaluations=1, **more
    )  # fmt: skip


def bare_loop(
    data: list[list[Tensor]], training: TrainingConfig, device: str, workers: int
) -> list[SAE]:
    """Only updates on ``data``, a list of batches per SAE; ``workers`` SAEs at a time."""

    def train(batches: list[Tensor]) -> SAE:
        model = build_sae(sae_config(CONFIG), SHAPE.d_in, 0).to(device)
        step = step_of(model, training, device)
        for number, x_BD in enumerate(batches):
            step.gradients(x_BD, None, 1.0)
            step.update(1e-3 * training.lr_fraction(number, len(batches)))
        step.release()
        return model

    if workers == 1:
        return [train(batches) for batches in data]
    before = torch.get_num_threads()
    with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        trained = list(pool.map(train, data))
    torch.set_num_threads(before)
    return trained


def batches_of(x_ND: Tensor) -> list[Tensor]:
    """All batches ``[batch, d_in]`` of a training on ``x_ND``, in order."""
    source = Rows(x_ND)
    return [batch for epoch in range(EPOCHS) for batch in source.epoch(0, epoch, SHAPE.batch)]


def seconds(run: Callable[[], object], device: str) -> float:
    """Seconds that ``run`` takes."""
    synchronize(device)
    started = time.perf_counter()
    run()
    synchronize(device)
    return time.perf_counter() - started


def run(precision: str, args: argparse.Namespace) -> None:
    """Measure and print the table's rows for one precision."""
    train = [rows_of(SHAPE, TRAIN, 2 * n + 1).to(args.device) for n in range(args.saes)]
    held_out = [rows_of(SHAPE, VALIDATION, 2 * n + 2).to(args.device) for n in range(args.saes)]
    drawn = [batches_of(x_ND) for x_ND in train]
    training, device, few = settings(precision), args.device, min(SLOW, args.saes)
    plain = settings(precision, compiled=False)
    fits: list[raysae.training.Fit] = []

    def together() -> None:
        fits[:] = raysae.fit_many(
            CONFIG, train, training, validation=held_out, device=device, progress=False
        )

    def one_by_one(count: int, training: TrainingConfig) -> list[raysae.training.Fit]:
        return [
            raysae.fit(CONFIG, x_ND, training, validation=x_val_ND, device=device, progress=False)
            for x_ND, x_val_ND in list(zip(train, held_out, strict=True))[:count]
        ]

    ways = {
        "fit_many": (together, 1.0),
        "one by one": (lambda: one_by_one(args.saes, training), 1.0),
        "bare loop, all threads": (lambda: bare_loop(drawn, training, device, 1), 1.0),
        "bare loop, one SAE a thread": (
            lambda: bare_loop(drawn, training, device, torch.get_num_threads()), 1.0,
        ),
        "torch, one by one": (lambda: one_by_one(few, plain), args.saes / few),
    }  # fmt: skip
    bare_loop(drawn[:2], training, device, 1)  # builds the kernels and fills the caches
    times: dict[str, list[float]] = {name: [] for name in ways}
    for repeat in range(args.repeats):
        order = list(ways)[repeat:] + list(ways)[:repeat]  # so that no way is always the first
        for name, (way, factor) in ((name, ways[name]) for name in order):
            times[name].append(factor * seconds(way, device))
    bare = [
        min(pair)
        for pair in zip(*(times[name] for name in ways if name.startswith("bare")), strict=True)
    ]
    tokens = args.saes * EPOCHS * TRAIN
    for name, measured in times.items():
        ratio = statistics.median(time / least for time, least in zip(measured, bare, strict=True))
        middle = statistics.median(measured)
        print(
            f"{precision:9} {name:28} {middle:8.2f} s {tokens / middle:>12,.0f} tokens/s {ratio:6.2f}"
        )
    ev = statistics.mean(fit.metrics["explained_variance"] for fit in fits)
    alone = raysae.fit(
        CONFIG, train[-1], training, validation=held_out[-1], device=device, progress=False
    )
    difference = max(
        float((together - one).abs().max())
        for together, one in zip(fits[-1].sae.parameters(), alone.sae.parameters(), strict=True)
    )
    print(f"{precision:9} mean EV {ev:.4f}; the last SAE alone differs by at most {difference:.1e}")


def main() -> int:
    """Print the table; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--saes", type=int, default=72)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--types", default="bfloat16,float32")
    args = parser.parse_args()
    print(f"{machine(args.device)}, {torch.get_num_threads()} threads; {args.saes} SAEs of {SHAPE}; "
          f"medians of {args.repeats}")  # fmt: skip
    print(f"{'type':9} {'way':28} {'time':>10} {'':>21} {'/ bare':>6}")
    for precision in args.types.split(","):
        run(precision, args)
    return 0


if __name__ == "__main__":
    sys.exit(main())
