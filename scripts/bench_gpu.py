"""What is owed on a GPU: the step against its floor, the crossover, processes, extraction.

    python scripts/bench_gpu.py [--part step] [--device cuda] [--quick]

- step: a pack of one at the wide shape (d_in 768, d_sae 24,576, K 32, batch 4,096) against the dense
  floor and against eager torch, with its peak of memory against what was planned;
- crossover: the step over the active latents against that by whole products, by K;
- processes: eight SAEs of R3 in one process as a pack, against eight processes at the same time;
- extraction: rows of all layers of a random model of GPT-2's size, against its plain forward passes.

``--quick`` uses sizes that a CPU is through with at once, to test this script: figures mean nothing then.
"""

import argparse
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context

import torch
from bench_training import Shape, rows_of
from machine import machine, measured_rates, synchronize
from torch import Tensor

import raysae
from raysae.sae import build_sae, sae_config
from raysae.training import TrainingConfig, packed
from raysae.training.compiled import step_of
from raysae.training.memory import packed_bytes
from raysae.training.packed import PackedStep

WIDE, QUICK = Shape(768, 24_576, 32, 4096, steps=60), Shape(32, 256, 4, 64, steps=6)
R3 = {"variant": "topk", "d_sae": 512, "k": 150}
EIGHT = 8


def packed_step(shape: Shape, precision: str, device: str) -> PackedStep:
    """A pack of one."""
    config = sae_config({"variant": "topk", "d_sae": shape.d_sae, "k": shape.k})
    training = TrainingConfig(batch_size=shape.batch, precision=precision, lr=1e-3)
    model = build_sae(config, shape.d_in, 0).to(device)
    since_fired = torch.zeros(shape.d_sae, dtype=torch.int64, device=device)
    return PackedStep([model], [training], [10**9], [since_fired], shape.steps + 10)


def seconds_of(step: Callable[[Tensor], object], x_BD: Tensor, shape: Shape, device: str) -> float:
    """Seconds of a step, after some that capture it."""
    for _ in range(4):
        step(x_BD)
    synchronize(device)
    started = time.perf_counter()
    for _ in range(shape.steps):
        step(x_BD)
    synchronize(device)
    return (time.perf_counter() - started) / shape.steps


def eager(shape: Shape, precision: str, device: str) -> Callable[[Tensor], object]:
    """A step of plain torch with autograd."""
    config = sae_config({"variant": "topk", "d_sae": shape.d_sae, "k": shape.k})
    training = TrainingConfig(batch_size=shape.batch, precision=precision, compiled=False)
    step = step_of(build_sae(config, shape.d_in, 0).to(device), training, device)

    def take(x_BD: Tensor) -> None:
        step.gradients(x_BD, None, 1.0)
        step.update(1e-3)

    return take


def bench_step(shape: Shape, device: str) -> None:
    """The step against its floor, eager torch and its planned memory."""
    x_BD = rows_of(shape, shape.batch, 1).to(device)
    for precision, dtype in (("bfloat16", torch.bfloat16), ("float32", torch.float32)):
        rates = measured_rates(shape.d_in, shape.d_sae, shape.batch, dtype, device)
        floor = rates.floor_seconds(shape.d_in, shape.d_sae, shape.batch)
        if device != "cpu":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        step = packed_step(shape, precision, device)
        ours = seconds_of(lambda x, step=step: step.take(x[None]), x_BD, shape, device)
        plain = seconds_of(eager(shape, precision, device), x_BD, shape, device)
        print(f"{shape!s} {precision}: {1000 * ours:.2f} ms, {shape.batch / ours:,.0f} tokens/s;"
              f" dense floor {1000 * floor:.2f} ms ({floor / ours:.0%} of it reached);"
              f" eager torch {1000 * plain:.2f} ms")  # fmt: skip
        if device != "cpu":
            config = sae_config({"variant": "topk", "d_sae": shape.d_sae, "k": shape.k})
            planned = packed_bytes(shape.d_in, config, step.training)  # type: ignore[arg-type]
            peak = torch.cuda.max_memory_allocated() / 2**30
            print(
                f"  peak of memory {peak:.2f} GiB (with eager torch), planned {planned / 2**30:.2f}"
            )


def bench_crossover(shape: Shape, device: str) -> None:
    """Over the active latents against whole products, by the part that is active."""
    x_BD = rows_of(shape, shape.batch, 1).to(device)
    for share in (0.002, 0.005, 0.01, 0.02, 0.04, 0.08):
        own = replace(shape, k=max(round(share * shape.d_sae), 1))
        took = []
        for limit in (1.0, 0.0):
            packed.SPARSE_SHARE = limit
            step = packed_step(own, "bfloat16", device)
            took.append(
                seconds_of(lambda x, step=step: step.take(x[None]), x_BD, own, device)
            )  # fmt: skip
        print(f"{own!s} {share:.1%} active: {1000 * took[0]:.2f} ms over active latents,"
              f" {1000 * took[1]:.2f} ms by whole products")  # fmt: skip


def _fit(number: int, device: str, rows: int) -> float:
    generator = torch.Generator().manual_seed(number)
    x_ND = torch.randn(rows + rows // 4, 768, generator=generator)
    training = TrainingConfig(batch_size=256, epochs=25, lr=1e-3, evaluations=1)
    started = time.time()
    raysae.fit(
        R3, x_ND[:rows], training, validation=x_ND[rows:], device=device, progress=False
    )  # fmt: skip
    return time.time() - started


def bench_processes(rows: int, device: str) -> None:
    """Eight SAEs in one process, against eight processes."""
    x_ND = torch.randn(rows + rows // 4, 768, generator=torch.Generator().manual_seed(0))
    training = TrainingConfig(batch_size=256, epochs=25, lr=1e-3, evaluations=1)
    together = []
    for _ in range(2):  # the first call compiles
        started = time.perf_counter()
        raysae.fit_many(
            R3, x_ND[:rows], training, validation=x_ND[rows:], seeds=list(range(EIGHT)),
            device=device, progress=False,
        )  # fmt: skip
        together.append(time.perf_counter() - started)
    print(
        f"eight SAEs of R3 in one process: {together[1]:.2f} s (the first call {together[0]:.2f} s)"
    )
    with ProcessPoolExecutor(EIGHT, get_context("spawn")) as pool:
        for round_ in ("first", "second"):
            started = time.perf_counter()
            list(pool.map(_fit, range(EIGHT), [device] * EIGHT, [rows] * EIGHT))
            print(f"eight processes, {round_} round: {time.perf_counter() - started:.2f} s")


def bench_extraction(quick: bool, device: str) -> None:
    """Rows of all layers, against plain forward passes over the same texts."""
    import numpy as np
    from transformers import GPT2Config, GPT2Model

    from raysae.transformer.capture import Capturer
    from raysae.transformer.sequence import TokenSequence

    small = {"n_layer": 2, "n_head": 2, "n_embd": 32, "vocab_size": 100, "n_positions": 64}
    config = GPT2Config(**(small if quick else {}))
    torch.manual_seed(0)
    model = GPT2Model(config).to(device).eval()
    length, texts = config.n_positions // 2, 8 if quick else 512
    layers = range(config.n_layer)
    capturer = Capturer(model, hookpoint="resid_post", layers=layers, dtype="float16").only(layers)
    draw = np.random.default_rng(0)
    none, every = np.zeros(length, np.int32), np.ones(length, bool)
    sequences = [
        TokenSequence(
            n, [n], "", draw.integers(0, config.vocab_size, length).astype(np.int32), none, none,
            every, none,
        )
        for n in range(texts)
    ]  # fmt: skip

    def plain() -> None:
        with torch.inference_mode():
            for start in range(0, texts, 128):
                ids = np.stack([s.token_id for s in sequences[start : start + 128]])
                model(input_ids=torch.from_numpy(ids).long().to(device), use_cache=False)

    for name, run in (("extraction", lambda: capturer.rows(sequences, ["all"])), ("plain", plain)):
        run()
        synchronize(device)
        started = time.perf_counter()
        run()
        synchronize(device)
        print(f"{name}: {texts * length / (time.perf_counter() - started):,.0f} tokens/s")


def main() -> None:
    """Run the parts that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parts = ("step", "crossover", "processes", "extraction")
    parser.add_argument("--part", choices=parts, action="append")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    if args.device == "cpu" and not args.quick:
        print("skipped: torch finds no GPU that it can use here; --quick tries the script on a CPU")
        return
    shape = QUICK if args.quick else WIDE
    print(machine(args.device))
    for part in args.part or parts:
        if part == "step":
            bench_step(shape, args.device)
        elif part == "crossover":
            bench_crossover(shape, args.device)
        elif part == "processes":
            bench_processes(40 if args.quick else 800, args.device)
        else:
            bench_extraction(args.quick, args.device)


if __name__ == "__main__":
    main()
