"""What follows a training, beside 1,000 steps of it, by width.

    python scripts/bench_after_training.py [--widths 512x4096 ...] [--batch 256] [--threads 2] [--cpu]

For each d_in x d_sae: seconds of 1,000 TopK steps (a few are measured, the first left out, and scaled
up), and of each part that follows the last: the evaluation, the decoder's figures, the agreement of two
seeds, the commit (copy of the weights, files, flush), and the copy to ``sweet_spot``. A width whose
training does not fit in this machine's free memory is named and left out. The parts must take at most
a tenth of the steps; the exit code says whether they do. On a machine that others use, ``--cpu`` counts
the seconds of the processor on one thread, without the waiting for it and for the disk.
"""

import argparse
import gc
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from machine import machine

from raysae.records.commit import commit
from raysae.records.run_files import RunFiles
from raysae.sae import sae_config
from raysae.sae.dictionary import agreement
from raysae.storage.files import replacing_folder
from raysae.training import Trainer, TrainingConfig
from raysae.training.memory import free_bytes, training_bytes
from raysae.training.rows import Rows

WIDTHS = (
    "512x2048", "512x8192", "512x32768", "512x131072", "2048x8192", "2048x16384", "2048x32768",
    "1024x131072", "2048x131072",
)  # fmt: skip
STEPS = 1000
TRAINED_ROWS = 8192
K = 32
ALLOWED = 0.1
PARTS = ("evaluation", "figures", "stability", "commit", "copy")
BESIDE = 6
"""Copies of a weight matrix that a training and the parts hold beside what the training itself needs."""


def main() -> int:
    """Print the table; returns 1 when the parts take more than they may somewhere."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--widths", nargs="+", default=WIDTHS, metavar="D_INxD_SAE")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--steps", type=int, default=3, help="steps to measure, after the first")
    parser.add_argument("--rows", type=int, default=2048, help="validation rows to evaluate")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--cpu", action="store_true", help="seconds of the processor, one thread")
    args = parser.parse_args()
    torch.set_num_threads(1 if args.cpu else args.threads)
    print(f"{machine()}; TopK, k {K}, batch {args.batch}, float32; seconds")
    columns = "".join(f"{name:>11}" for name in PARTS)
    print(f"{'d_in x d_sae':14}{'1,000 steps':>12}{columns}{'all':>9}{'ratio':>8}")
    agreement([(torch.eye(2), torch.eye(2))])  # imports what it needs, once a process
    worst = max(row(width, args) for width in args.widths)
    print(f"1,000 steps: {args.steps} measured, scaled up; {args.rows:,} rows evaluated")
    return int(worst > ALLOWED)


def row(width: str, args: argparse.Namespace) -> float:
    """Print the row of a width; returns the parts' time over that of the steps, 0 when left out."""
    d_in, d_sae = map(int, width.split("x"))
    training = TrainingConfig(tokens=10**12, batch_size=args.batch, evaluations=1, lr=1e-3)
    needed = training_bytes(d_in, d_sae, training) + BESIDE * 4 * d_in * d_sae
    free = free_bytes("cpu")
    if free is not None and needed > free:
        print(
            f"{d_in} x {d_sae:<8} does not fit: {needed / 2**30:.1f} GiB, {free / 2**30:.1f} free"
        )
        return 0.0
    steps, parts = measured(d_in, d_sae, training, args)
    after = sum(parts.values())
    cells = "".join(f"{parts[name]:11.2f}" for name in PARTS)
    name = f"{d_in} x {d_sae}"
    print(f"{name:14}{steps:12.1f}{cells}{after:9.2f}{after / steps:8.1%}", flush=True)
    gc.collect()
    return after / steps


def measured(
    d_in: int, d_sae: int, training: TrainingConfig, args: argparse.Namespace
) -> tuple[float, dict[str, float]]:
    """Seconds of 1,000 steps, and of each part that follows them."""
    clock = time.process_time if args.cpu else time.perf_counter

    def seconds(run: Callable[[], object]) -> float:
        started = clock()
        run()
        return clock() - started

    rows = torch.randn(TRAINED_ROWS + args.rows, d_in)
    config = sae_config({"variant": "topk", "d_sae": d_sae, "k": K})
    held_out = Rows([rows[TRAINED_ROWS:]])
    trainer = Trainer(config, training, Rows([rows[:TRAINED_ROWS]]), held_out)
    batches = iter(trainer.feed)
    trainer.take(next(batches))
    steps = seconds(lambda: [trainer.take(next(batches)) for _ in range(args.steps)])
    parts = {"evaluation": seconds(trainer.metrics), "figures": seconds(trainer.final_metrics)}
    W_dec_FD = trainer.model.W_dec.detach()
    seeds = [(W_dec_FD, other_seed(W_dec_FD))]
    parts["stability"] = seconds(lambda: agreement(seeds))
    seeds.clear()
    with tempfile.TemporaryDirectory() as folder:
        sae, files = Path(folder) / "sae", RunFiles(Path(folder))
        parts["commit"] = seconds(lambda: commit(files, trainer, sae, {}, {}, [], time.time()))
        parts["copy"] = seconds(lambda: copy(sae, Path(folder) / "sweet_spot"))
    return steps * STEPS / args.steps, parts


def other_seed(W_dec_FD: torch.Tensor) -> torch.Tensor:
    """Decoder rows ``[d_sae, d_in]`` as another seed's may be: half of them nearly the same."""
    other_FD = torch.randn_like(W_dec_FD)
    half = len(W_dec_FD) // 2
    other_FD[:half].mul_(0.3 / W_dec_FD.shape[1] ** 0.5).add_(W_dec_FD[:half])
    return other_FD


def copy(source: Path, target: Path) -> None:
    """Copy an SAE's folder as the run does for its sweet spot."""
    with replacing_folder(target) as temporary:
        shutil.copytree(source, temporary, dirs_exist_ok=True)


if __name__ == "__main__":
    sys.exit(main())
