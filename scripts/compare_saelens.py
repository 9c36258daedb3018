"""Quality of TopK and BatchTopK, trained by raysae and by SAELens on the same batches.

    python scripts/compare_saelens.py [--model FOLDER --dataset FILE] [--quick]

raysae extracts the activations of one layer at all tokens (by default of the pocket GPT-2) and cuts
them into batches once. Both libraries train on these in the same order and with the same schedule.
Each uses the best of the same peak learning rates, found with the first seed; SAELens is also tried
without its input scaling (a * in the table). raysae.sae.metrics measures all SAEs on the same
held-out rows. BatchTopK's threshold gives an L0 slightly different from k, so its EV is also
measured with L0 equal to k, and those values are compared.

SAELens has a separate environment: scripts/peers.sh creates it, or RAYSAE_PEERS names another
python. The exit code is 1 when our EV is more than 0.0005 lower in some row.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

import raysae
from raysae.activations import Store
from raysae.sae.metrics import ReconstructionSums, evaluate

ROOT = Path(__file__).parents[1]
BATCH, WARM_UP, DECAY = 1024, 0.05, 0.2
VALIDATION_ROWS = 32_768
TOLERANCE = 0.0005
SCALED, UNSCALED = "expected_average_only_in", "none"


@dataclass(frozen=True)
class Plan:
    """The amount of training."""

    rows: int
    steps: int
    shapes: tuple[tuple[int, int], ...]
    """d_sae and k."""
    lrs: tuple[float, ...]
    seeds: tuple[int, ...]


FULL = Plan(700_000, 1000, ((256, 8), (512, 16)), (3e-3, 1e-2, 2e-2), (0, 1))
QUICK = Plan(150_000, 300, ((256, 8),), (1e-2,), (0,))


@dataclass(frozen=True)
class Job:
    """One SAE to train."""

    variant: str
    d_sae: int
    k: int
    seed: int
    lr: float
    normalize: str = SCALED
    """SAELens's input scaling; raysae has only one way."""

    @property
    def shape(self) -> tuple[str, int, int]:
        """Variant, d_sae and k."""
        return self.variant, self.d_sae, self.k


@dataclass(frozen=True)
class Outcome:
    """The result of a job, measured on the validation rows."""

    job: Job
    seconds: float
    ev: float
    l0: float
    dead: float
    """Fraction of latents that never fired."""
    ev_at_k: float
    """EV with the mean L0 at exactly k."""


@dataclass(frozen=True)
class Data:
    """The rows for both libraries."""

    batches_ND: Tensor
    validation_ND: Tensor
    file: Path
    """``batches_ND`` on disk."""


Side = Callable[[list[Job]], Iterator[Outcome]]
Outcomes = dict[tuple[str, int, int, int], Outcome]
"""By variant, d_sae, k and seed."""


def peers_python() -> str | None:
    """The python that has SAELens, or None."""
    if named := os.environ.get("RAYSAE_PEERS"):
        return named
    python = ROOT / ".peers" / "bin" / "python"
    return str(python) if python.exists() else None


def peers_environment() -> dict[str, str]:
    """The environment variables of the peers' programs."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}


def prepare(folder: Path, args: argparse.Namespace, plan: Plan) -> Data:
    """Extract activations and cut them into batches."""
    store = extract(folder / "store", args, plan.rows)
    (site,) = store.sites
    train_ND, validation_ND = store.train(site).float(), store.validation(site).float()
    batches_ND = train_ND[order_of(len(train_ND), plan.steps)]
    save_file({"batches": batches_ND}, folder / "rows.safetensors")
    return Data(batches_ND, validation_ND[:VALIDATION_ROWS], folder / "rows.safetensors")


def extract(folder: Path, args: argparse.Namespace, rows: int) -> Store:
    """Extract at most ``rows`` activations of one layer, at all tokens, into a store."""
    settings = {
        "model": args.model, "dataset": args.dataset, "text": args.text, "layers": [args.layer],
        "positions": "all", "packing": True, "max_rows": rows, "validation": 0.05, "test": 0,
    }  # fmt: skip
    keys = [f"source.{key}={json.dumps(value)}" for key, value in settings.items()]
    command = [sys.executable, "-m", "raysae.extract", f"store={folder}", *keys]
    done = subprocess.run(command, check=False, stdout=sys.stderr)
    if done.returncode:  # the command has printed the reason
        sys.exit(done.returncode)
    return raysae.open_store(folder)


def order_of(rows: int, steps: int) -> Tensor:
    """Row numbers of ``steps`` whole batches; each epoch is shuffled and leaves out odd rows."""
    generator = torch.Generator().manual_seed(0)
    whole = rows // BATCH * BATCH
    epochs = math.ceil(steps * BATCH / whole)
    order = torch.cat([torch.randperm(rows, generator=generator)[:whole] for _ in range(epochs)])
    return order[: steps * BATCH]


def ours(data: Data) -> Side:
    """Train with ``raysae.fit``; shuffle windows of one batch do not change the batches."""
    settings = {
        "tokens": len(data.batches_ND), "batch_size": BATCH, "shuffle_rows": BATCH,
        "warm_up": WARM_UP, "decay": DECAY, "evaluations": 1,
    }  # fmt: skip

    def train(jobs: list[Job]) -> Iterator[Outcome]:
        for job in jobs:
            started = time.perf_counter()
            sae = raysae.fit(
                {"variant": job.variant, "d_sae": job.d_sae, "k": job.k},
                iter(data.batches_ND.split(BATCH)),
                {**settings, "lr": job.lr},
                validation=data.validation_ND[:BATCH],
                seed=job.seed,
                progress=False,
            ).sae
            yield measured(job, sae, data, time.perf_counter() - started)

    return train


def saelens(data: Data, python: str) -> Side:
    """Train with SAELens's trainer, in its own environment; raysae loads the SAEs."""
    program = Path(__file__).parent / "peers" / "train_saelens.py"
    out = data.file.parent / "theirs"
    settings = {
        "batch": BATCH, "warm_up": WARM_UP, "decay": DECAY, "out": str(out),
        "dead_window": max(len(data.batches_ND) // BATCH // 1000, 4),  # in steps, by raysae's rule
    }  # fmt: skip

    def train(jobs: list[Job]) -> Iterator[Outcome]:
        with subprocess.Popen(
            [python, str(program), str(data.file)], env=peers_environment(), text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        ) as process:  # fmt: skip
            assert process.stdin is not None and process.stdout is not None
            for job in jobs:
                print(json.dumps({**asdict(job), **settings}), file=process.stdin, flush=True)
                line = process.stdout.readline()
                if not line:
                    raise RuntimeError(f"{program} ended early; its reason stands above")
                yield measured(job, raysae.load_sae(out), data, json.loads(line)["seconds"])
            process.stdin.close()

    return train


def measured(job: Job, sae: raysae.SAE, data: Data, seconds: float) -> Outcome:
    """The metrics of a trained SAE, defined alike for both libraries."""
    sums = sums_of(sae, data)
    metrics = sums.metrics()
    ev = metrics["explained_variance"]
    outcome = Outcome(job, seconds, ev, metrics["l0"], sums.dead_fraction(), ev)
    if job.variant == "batch_topk":
        set_l0(sae, job.k, data.validation_ND)
        at_k = sums_of(sae, data).metrics()
        assert abs(at_k["l0"] - job.k) < 1e-3
        outcome = replace(outcome, ev_at_k=at_k["explained_variance"])
    return outcome


def sums_of(sae: raysae.SAE, data: Data) -> ReconstructionSums:
    """The sums over the validation rows."""
    return evaluate(lambda x_BD: sae(x_BD)[:2], data.validation_ND.split(4096))


def set_l0(sae: raysae.SAE, k: int, x_ND: Tensor) -> None:
    """Set the threshold so that on average k latents are active per row of ``x_ND``."""
    preactivations = torch.cat([sae.preactivations(x_BD).flatten() for x_BD in x_ND.split(4096)])
    threshold = preactivations.kthvalue(len(preactivations) - k * len(x_ND)).values
    sae.get_parameter_or_buffer("threshold").fill_(threshold)


def trained(name: str, side: Side, plan: Plan, tried: list[tuple[float, str]]) -> Outcomes:
    """The outcomes of all seeds, each with the settings of ``tried`` best for the first."""
    first, *others = plan.seeds
    shapes = [(v, d_sae, k) for v in ("topk", "batch_topk") for d_sae, k in plan.shapes]
    grid = [Job(*shape, first, *settings) for shape in shapes for settings in tried]
    best: dict[tuple[str, int, int], Outcome] = {}
    for outcome in told(name, side(grid)):
        shape = outcome.job.shape
        best[shape] = max(best.get(shape, outcome), outcome, key=lambda one: one.ev_at_k)
    rest = [replace(best[shape].job, seed=seed) for shape in shapes for seed in others]
    outcomes = [*best.values(), *told(name, side(rest))]
    return {(*outcome.job.shape, outcome.job.seed): outcome for outcome in outcomes}


def told(name: str, outcomes: Iterator[Outcome]) -> Iterator[Outcome]:
    """Yield ``outcomes`` and print a line for each."""
    for one in outcomes:
        job = one.job
        scaling = " unscaled" if job.normalize == UNSCALED else ""
        print(
            f"{name:8} {job.variant} d_sae {job.d_sae} k {job.k} seed {job.seed} lr {job.lr:g}"
            f"{scaling}: EV {one.ev:.4f}, at k {one.ev_at_k:.4f}, {one.seconds:.0f} s",
            file=sys.stderr, flush=True,
        )  # fmt: skip
        yield one


def report(all_ours: Outcomes, all_theirs: Outcomes) -> int:
    """Print the table (ours / SAELens's); returns 1 when our EV is lower in a row."""
    print(f"{'variant':10} {'d_sae':>5} {'k':>3} {'seed':>4} {'lr':>14} {'EV':>15} {'L0':>13} "
          f"{'EV at L0 = k':>15} {'difference':>10} {'dead':>13} {'seconds':>8}")  # fmt: skip
    below = 0
    for key in sorted(all_ours, key=lambda key: (key[0] != "topk", *key[1:])):
        mine, theirs = all_ours[key], all_theirs[key]
        difference = mine.ev_at_k - theirs.ev_at_k
        below += difference < -TOLERANCE
        print(row_of(mine, theirs, difference))
    print(f"ours is below by more than {TOLERANCE} in {below} of {len(all_ours)} rows")
    return 1 if below else 0


def row_of(mine: Outcome, theirs: Outcome, difference: float) -> str:
    """A line of the table."""
    job, star = mine.job, "*" if theirs.job.normalize == UNSCALED else " "
    lr = f"{job.lr:g} / {theirs.job.lr:g}{star}"
    return (
        f"{job.variant:10} {job.d_sae:5} {job.k:3} {job.seed:4} {lr:>14} "
        f"{mine.ev:.4f} / {theirs.ev:.4f} {mine.l0:5.2f} / {theirs.l0:5.2f} "
        f"{mine.ev_at_k:.4f} / {theirs.ev_at_k:.4f} {difference:+10.4f} "
        f"{mine.dead:5.1%} / {theirs.dead:5.1%} {mine.seconds:3.0f} /{theirs.seconds:3.0f}"
        f"{'  below' if difference < -TOLERANCE else ''}"
    )


def main() -> int:
    """Print the table; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="pocket", help="a folder, a hub id or pocket")
    parser.add_argument("--dataset", default="pocket", help="a file, a hub id or pocket")
    parser.add_argument("--text", help='"{question} {answer}", and "{prompt}" for pocket')
    parser.add_argument("--layer", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="one shape, one seed, one lr")
    args = parser.parse_args()
    args.text = args.text or ("{prompt}" if args.dataset == "pocket" else "{question} {answer}")
    plan = QUICK if args.quick else FULL
    python = peers_python()
    if python is None:
        print("error: no environment with SAELens: scripts/peers.sh makes it", file=sys.stderr)
        return 2
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        data = prepare(Path(folder), args, plan)
        print(f"{plan.steps} steps of {BATCH} rows of d_in {data.batches_ND.shape[1]}; "
              f"validation rows: {len(data.validation_ND):,}; ours / SAELens's")  # fmt: skip
        tried = [(lr, SCALED) for lr in plan.lrs]
        mine = trained("raysae", ours(data), plan, tried)
        tried.append((plan.lrs[len(plan.lrs) // 2], UNSCALED))
        theirs = trained("SAELens", saelens(data, python), plan, tried)
    return report(mine, theirs)


if __name__ == "__main__":
    sys.exit(main())
