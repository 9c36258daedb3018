"""The peak memory of a training, compared with the least memory that it needs.

    python scripts/bench_memory.py

The least memory: weights, gradients, Adam's two moments (16 bytes per parameter) and two batches of
rows in float32. Each training, with its evaluations, runs in a separate process. Its peak is the
largest resident memory minus the memory before the training (the rows, torch, and the kernels after
a tiny training). Linux only: the peak is read from /proc.
"""

import argparse
import ctypes
import os
import subprocess
import sys
from pathlib import Path

import torch
from bench_training import SHAPES, Shape, rows_of
from machine import machine

import raysae

STEPS = 12


def resident(key: str) -> int:
    """``VmRSS`` (now) or ``VmHWM`` (the peak) of this process, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = [line for line in lines if line.startswith(key + ":")]
    return int(line.split()[1]) * 1024


def train(shape: Shape, precision: str, rows: torch.Tensor, held_out: torch.Tensor) -> raysae.SAE:
    """Train TopK on ``rows [rows, d_in]``."""
    return raysae.fit(
        {"variant": "topk", "d_sae": shape.d_sae, "k": shape.k}, rows,
        {"batch_size": shape.batch, "precision": precision, "evaluations": 2, "lr": 1e-3},
        validation=held_out, progress=False,
    ).sae  # fmt: skip


def measure(number: int, precision: str) -> None:
    """Print the peak in bytes; runs in a separate process."""
    shape = SHAPES[number]
    rows, held_out = rows_of(shape, STEPS * shape.batch, 1), rows_of(shape, 1024, 2)
    tiny = Shape(32, 64, 4, 64, 1)
    train(tiny, precision, rows_of(tiny, 256, 1), rows_of(tiny, 64, 2))
    ctypes.CDLL(None).malloc_trim(0)  # return freed memory, so that the training cannot use it
    Path("/proc/self/clear_refs").write_text("5")  # reset the peak
    before = resident("VmRSS")
    sae = train(shape, precision, rows, held_out)
    print(resident("VmHWM") - before)
    assert sae.W_dec.isfinite().all()


def main() -> int:
    """Print the table; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        measure(int(args.measure[0]), args.measure[1])
        return 0
    # freed memory is returned to the system at once, so it is not counted
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "1000000"}
    print(machine())
    print(f"{'d_in, d_sae, k, batch':24} {'type':8} {'needed':>10} {'peak':>10} {'ratio':>6}")
    for number, shape in enumerate(SHAPES):
        parameters = 2 * shape.d_in * shape.d_sae + shape.d_in + shape.d_sae
        needed = 16 * parameters + 2 * 4 * shape.batch * shape.d_in
        for precision in ("float32", "bfloat16"):
            command = [sys.executable, __file__, "--measure", str(number), precision]
            done = subprocess.run(
                command, check=True, stdout=subprocess.PIPE, text=True, env=environment
            )
            peak = int(done.stdout)
            print(f"{shape!s:24} {precision:8} {needed / 1e6:7.1f} MB {peak / 1e6:7.1f} MB "
                  f"{peak / needed:6.2f}")  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
