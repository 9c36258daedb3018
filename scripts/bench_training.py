"""Speed of training one TopK SAE, compared with SAELens's trainer and sparsify's SparseCoder.

    python scripts/bench_training.py [--quick] [--shapes 0,1,2] [--threads 1,all] [--repeats 3]

All libraries train on the same batches of synthetic activations, in the same order, with the same
schedule of the learning rate and the same number of threads. Each uses the best of the same peak
learning rates, which untimed runs find. Each repeat runs all libraries one after another; a ratio
is the median over the repeats of our speed / theirs. The first steps of each are not timed.
raysae.sae.metrics measures EV and L0 of all on held-out rows. The floor of a dense step
(scripts/machine.py) is measured in the same run. For bfloat16, raysae uses precision bfloat16 and
SAELens autocast; sparsify does not support it on CPUs.

On a GPU (--device cuda) raysae is compared with the same mathematics in eager torch instead.

scripts/peers.sh creates the environment of the other libraries; RAYSAE_PEERS names another python
for it.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from compare_saelens import peers_environment, peers_python
from machine import machine, measured_rates, synchronize
from peers.timing import TimedBatches
from safetensors.torch import save_file
from torch import Tensor

import raysae
from raysae.sae import sae_config
from raysae.sae.metrics import evaluate
from raysae.training import Trainer, TrainingConfig
from raysae.training.alone import step_alone
from raysae.training.rows import Rows

SCHEDULE = {"warm_up": 0.05, "decay": 0.2}
LRS = (3e-3, 5e-3, 1e-2)
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
VALIDATION_ROWS = 4096


@dataclass(frozen=True)
class Shape:
    """The shape of a training, and its number of steps."""

    d_in: int
    d_sae: int
    k: int
    batch: int
    steps: int
    skip: int = 10
    """Steps before the clock starts."""

    def __str__(self) -> str:
        return f"({self.d_in}, {self.d_sae}, {self.k}, {self.batch})"


SHAPES = (
    Shape(384, 1536, 32, 1024, 120),
    Shape(768, 512, 150, 256, 200),
    Shape(768, 6144, 64, 1024, 50),
)
GPU_SHAPES = (Shape(768, 24576, 32, 4096, 300), Shape(768, 6144, 64, 4096, 300))


@dataclass(frozen=True)
class Result:
    """One training."""

    speed: float
    """Tokens a second."""
    ev: float
    l0: float


def rows_of(shape: Shape, count: int, seed: int) -> Tensor:
    """Rows ``[count, d_in]``: sums of about 20 of 4 d_in atoms, most of them rare, and noise."""
    atoms = 4 * shape.d_in
    # from numpy: torch's generator could draw the initial weights of an SAE
    truth = np.random.default_rng(0).standard_normal((atoms, shape.d_in), dtype=np.float32)
    atoms_AD = torch.from_numpy(truth) / shape.d_in**0.5
    share_A = torch.arange(1, atoms + 1).float().pow(-0.5)
    share_A *= 20 / share_A.sum()
    generator = torch.Generator().manual_seed(seed)
    parts = []
    for start in range(0, count, 8192):
        rows = min(8192, count - start)
        size_NA = torch.empty(rows, atoms).exponential_(generator=generator)
        active_NA = torch.rand(rows, atoms, generator=generator) < share_A
        noise_ND = 0.02 * torch.randn(rows, shape.d_in, generator=generator)
        parts.append((size_NA * active_NA) @ atoms_AD + noise_ND + 0.1)
    rows_ND = torch.cat(parts)
    return rows_ND * (shape.d_in / rows_ND.square().sum(dim=1).mean()).sqrt()


def ours(shape: Shape, data: Tensor, held_out: Tensor, job: dict[str, Any]) -> Result:
    """Train with raysae's ``Trainer``, as ``raysae.fit`` does, on batches prepared before."""
    torch.set_num_threads(job["threads"])
    settings = TrainingConfig(
        batch_size=shape.batch, lr=job["lr"], precision=job["precision"], evaluations=1,
        compiled=job.get("compiled", True), **SCHEDULE,
    )  # fmt: skip
    config = sae_config({"variant": "topk", "d_sae": shape.d_sae, "k": shape.k})
    device = job["device"]
    few = Rows(held_out[:16])  # makes the trainer's own last evaluation short
    trainer = Trainer(config, settings, Rows(data), few, seed=job["seed"], device=device)
    take = step_alone(trainer, pack=device != "cpu" and settings.compiled)
    timed = TimedBatches(data.to(device), shape.batch, shape.skip)
    for number, batch_BD in enumerate(timed):
        if number == shape.skip:
            synchronize(device)
        take(batch_BD)
    synchronize(device)
    speed = timed.tokens_per_second()
    assert trainer.step == trainer.steps == shape.steps
    return measured(trainer.sae(), held_out, speed)


def measured(sae: raysae.SAE, held_out: Tensor, speed: float) -> Result:
    """The result of a trained SAE, measured on ``held_out [rows, d_in]``."""
    metrics = evaluate(sae.reconstruct, held_out.split(1024)).metrics()
    return Result(speed, metrics["explained_variance"], metrics["l0"])


class Peer:
    """A running program of scripts/peers, which trains with another library."""

    def __init__(self, process: subprocess.Popen[str], out: Path):
        self.process, self.out = process, out

    def __call__(self, shape: Shape, held_out: Tensor, job: dict[str, Any]) -> Result:
        """Train one SAE. Raises RuntimeError when the program ends early."""
        told = {
            "variant": "topk", "d_sae": shape.d_sae, "k": shape.k, "batch": shape.batch, "lr": job["lr"],
            "seed": job["seed"], "threads": job["threads"], "timed_from": shape.skip,
            "autocast": job["precision"] == "bfloat16", "normalize": "none", "dead_window": 1000,
            "out": str(self.out), **SCHEDULE,
        }  # fmt: skip
        assert self.process.stdin is not None and self.process.stdout is not None
        print(json.dumps(told), file=self.process.stdin, flush=True)
        for line in self.process.stdout:
            if line.startswith("{"):  # sparsify prints other lines, too
                sae = raysae.load_sae(self.out)
                return measured(sae, held_out, json.loads(line)["tokens_per_second"])
        raise RuntimeError(f"{self.process.args} ended early; its reason stands above")


Side = Callable[[dict[str, Any]], Result]


@contextmanager
def peer(program: str, python: str, rows: Path) -> Iterator[Peer]:
    """Start a peer's process on one file of rows; the process ends with the context."""
    script = Path(__file__).parent / "peers" / program
    with subprocess.Popen(
        [python, str(script), str(rows)], env=peers_environment(), text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    ) as process:  # fmt: skip
        yield Peer(process, rows.parent / script.stem)
        assert process.stdin is not None
        process.stdin.close()


def run_shape(shape: Shape, args: argparse.Namespace) -> None:
    """Measure and print the table's rows for one shape."""
    data = rows_of(shape, shape.steps * shape.batch, 1)
    held_out = rows_of(shape, VALIDATION_ROWS, 2)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        peers: dict[str, Peer] = {}
        if args.device == "cpu":
            file = Path(folder) / "rows.safetensors"
            save_file({"batches": data}, file)
            for name, program in (
                ("SAELens", "train_saelens.py"),
                ("sparsify", "train_sparsify.py"),
            ):
                peers[name] = stack.enter_context(peer(program, args.python, file))
        sides = sides_of(shape, data, held_out, peers, args.device)
        lrs = {name: best_lr(side, args) for name, side in sides.items()}
        for threads in args.threads:
            float32, bfloat16 = (
                compare(shape, sides, lrs, threads, precision, args) for precision in PRECISIONS
            )
            for name in peers:
                ratio = bfloat16["raysae"] / float32[name]
                print(
                    f"{shape!s:24} {threads:>7} ours in bfloat16 / {name} in float32: {ratio:.2f}"
                )


def sides_of(
    shape: Shape, data: Tensor, held_out: Tensor, peers: dict[str, Peer], device: str
) -> dict[str, Side]:
    """A function for each library that runs a job."""
    sides: dict[str, Side] = {"raysae": lambda job: ours(shape, data, held_out, job)}
    if device != "cpu":
        sides["eager torch"] = lambda job: ours(shape, data, held_out, {**job, "compiled": False})
    for name, one in peers.items():
        sides[name] = lambda job, one=one: one(shape, held_out, job)  # type: ignore[misc]
    return sides


def best_lr(side: Side, args: argparse.Namespace) -> float:
    """The learning rate with the highest EV after these few steps."""
    if args.quick:
        return LRS[1]
    job = {"threads": max(args.threads), "precision": "float32", "seed": 0, "device": args.device}
    return max(LRS, key=lambda lr: side({**job, "lr": lr}).ev)


def compare(
    shape: Shape, sides: dict[str, Side], lrs: dict[str, float], threads: int, precision: str,
    args: argparse.Namespace,
) -> dict[str, float]:  # fmt: skip
    """Run all libraries repeatedly, print a line for each; returns their tokens per second."""
    torch.set_num_threads(threads)
    rates = measured_rates(shape.d_in, shape.d_sae, shape.batch, PRECISIONS[precision], args.device)
    floor = shape.batch / rates.floor_seconds(shape.d_in, shape.d_sae, shape.batch)
    job = {"threads": threads, "precision": precision, "device": args.device}
    taking_part = [name for name in sides if precision == "float32" or name != "sparsify"]
    results: dict[str, list[Result]] = {name: [] for name in taking_part}
    for repeat in range(args.repeats):
        for name in taking_part:
            results[name].append(sides[name]({**job, "seed": repeat + 1, "lr": lrs[name]}))
    speeds = {name: statistics.median(run.speed for run in runs) for name, runs in results.items()}
    for name, runs in results.items():
        speed = speeds[name]
        pairs = zip(results["raysae"], runs, strict=True)
        ratio = statistics.median(mine.speed / theirs.speed for mine, theirs in pairs)
        ev = statistics.median(run.ev for run in runs)
        print(
            f"{shape!s:24} {threads:>7} {precision:8} {name:11} {speed:>10,.0f} {ratio:>7.2f} "
            f"{speed / floor:>7.0%} {lrs[name]:>6g} {ev:>8.4f} {runs[0].l0:>7.2f}",
            flush=True,
        )  # fmt: skip
    return speeds


def main() -> int:
    """Print the table; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", help="numbers of shapes, such as 0,2")
    parser.add_argument("--threads", default="1,all")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--quick", action="store_true", help="the first shape, one thread, once")
    args = parser.parse_args()
    every = torch.get_num_threads()
    args.threads = [every if n == "all" else int(n) for n in args.threads.split(",")]
    args.python = peers_python()
    if args.python is None and args.device == "cpu":
        print("error: no environment with the peers: scripts/peers.sh makes it", file=sys.stderr)
        return 2
    shapes = SHAPES if args.device == "cpu" else GPU_SHAPES
    if args.shapes:
        shapes = tuple(shapes[int(number)] for number in args.shapes.split(","))
    if args.quick:
        shapes, args.threads, args.repeats = shapes[:1], [1], 1
    print(f"{machine(args.device)}; medians of {args.repeats}")
    print(f"{'d_in, d_sae, k, batch':24} {'threads':>7} {'type':8} {'library':11} {'tokens/s':>10} "
          f"{'ours x':>7} {'floor':>7} {'lr':>6} {'EV':>8} {'L0':>7}")  # fmt: skip
    for shape in shapes:
        run_shape(shape, args)
    return 0


if __name__ == "__main__":
    sys.exit(main())
