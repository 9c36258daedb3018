"""Worlds drawn from ranges by their number, and whether each rule finds what is best in them.

``scripts/planted_optima.py --part auto`` prints the table. A world is independent (random atoms, one
rate) or hard (see ``raysae.activations.hard_world``). The best d_sae is that of the trial with the best
``mcc``; the best K has the best ``f1`` among the trials of the d_sae nearest to the number of atoms.
"""

import math
import random
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import raysae
from raysae.activations.hard_world import HardWorld
from raysae.activations.synthetic import SuperpositionWorld, write_synthetic_store
from raysae.config.search import SelectConfig
from raysae.records.rows import TrialRow
from raysae.records.tables import read_trials
from raysae.sweep.selection.rules import select

SIZES, KS = [16, 32, 64, 128, 256, 512], [1, 2, 3, 4, 6, 8, 12, 16, 24, 32]
KINDS = ("independent", "hard")


@dataclass(frozen=True)
class Budget:
    """What a sweep of one world may take."""

    rows: int = 300_000
    epochs: int = 6
    trials: int = 30
    batch_size: int = 512
    sizes: tuple[int, ...] = tuple(SIZES)
    ks: tuple[int, ...] = tuple(KS)


@dataclass(frozen=True)
class Verdict:
    """What is best in a world, and what a rule chose."""

    d_sae: int
    k: int
    config: tuple[int, int] | None
    near: bool
    """Whether both are within one tried step of the best."""
    held: bool | None
    """Whether the rule's interval holds the best K; None without an interval."""


def world_of(kind: str, number: int) -> SuperpositionWorld | HardWorld:
    """The world of this kind and number."""
    draw = random.Random(f"{kind} {number}")
    atoms, d_in = draw.choice([64, 128, 256]), draw.choice([48, 64, 96])
    if kind == "independent":
        return SuperpositionWorld(d_in, atoms, p=draw.uniform(2, 6) / atoms, seed=500 + number)
    return HardWorld(
        d_in=d_in, atoms=atoms, seed=500 + number, rate_exponent=draw.uniform(0.3, 0.8),
        max_rate=draw.uniform(0.2, 0.4), min_rate=draw.uniform(0.8, 2.0) / atoms,
        roots=draw.choice([4, 8, 12]), children=draw.choice([3, 4]), exclusive=draw.choice([0, 0.5, 1]),
        correlation_rank=draw.choice([0, 8]), spread=draw.uniform(0.1, 0.3), bias=draw.uniform(0, 1),
        near_orthogonal=draw.random() < 0.5, noise=draw.choice([0.0, 0.1]),
    )  # fmt: skip


def trials_of(
    folder: Path, kind: str, number: int, sampler: str, budget: Budget
) -> tuple[list[TrialRow], float]:
    """The trials of a sweep of this world and the seconds it took; read where it was finished before."""
    name, started = f"{kind}-{number}-{sampler}", time.time()
    table = folder / "runs" / name / "trials.parquet"
    if not table.exists():
        store = folder / f"store-{kind}-{number}"
        if not store.exists():
            write_synthetic_store(
                store, world_of(kind, number), budget.rows, validation=0.05, test=0.0
            )
        raysae.sweep(_recipe(folder, name, store, kind, number, sampler, budget))
    return read_trials(table), time.time() - started


def _recipe(
    folder: Path, name: str, store: Path, kind: str, number: int, sampler: str, budget: Budget
) -> dict[str, Any]:
    return {
        "name": name, "runs_dir": str(folder / "runs"), "store": str(store), "source": None,
        "seed": number, "sae": {"variant": "topk" if kind == "independent" else "batch_topk"},
        "training": {
            "epochs": budget.epochs, "batch_size": budget.batch_size, "lr": 3e-3, "evaluations": 1,
        },
        "sweep": {
            "sampler": sampler, "trials": budget.trials, "seeds_per_trial": 2,
            "startup_trials": min(10, budget.trials),
            "space": {
                "sae.d_sae": {"choices": list(budget.sizes)}, "sae.k": {"choices": list(budget.ks)},
            },
        },
        "atlas": {"enabled": False}, "records": {"mlflow": False},
    }  # fmt: skip


def best_of(rows: list[TrialRow], atoms: int) -> tuple[int, int]:
    """The d_sae at which the truth is best recovered, and the K with the best F1."""
    done = [row for row in rows if row.done]
    size = max(done, key=lambda row: row["mcc"]).d_sae
    nearest = min({row.d_sae for row in done}, key=lambda d_sae: abs(math.log2(d_sae / atoms)))
    k = max((row for row in done if row.d_sae == nearest), key=lambda row: row["f1"]).k
    assert k is not None
    return size, k


def verdicts(rows: list[TrialRow], best: tuple[int, int]) -> dict[str, Verdict]:
    """What each rule chooses among the trials, and whether it is near the best."""
    choices = select(rows, SelectConfig(ev_floor=0.8))["choices"]
    by_number = {row.trial: row for row in rows}
    found = {}
    for rule, choice in choices.items():
        if rule == "pareto":
            continue
        row = by_number.get(choice["trial"])
        config = None if row is None or row.k is None else (row.d_sae, row.k)
        near = config is not None and all(
            steps(one, other, values) <= 1
            for one, other, values in zip(config, best, (SIZES, KS), strict=True)
        )
        found[rule] = Verdict(*best, config, near, _holds(choice.get("interval"), best[1]))
    return found


def steps(one: int, other: int, values: list[int]) -> int:
    """How many values of the space two of them are apart."""
    return abs(values.index(one) - values.index(other))


def _holds(interval: dict[str, list[int | None]] | None, k: int) -> bool | None:
    if interval is None:
        return None
    low, high = interval["sae.k"]
    assert low is not None
    return low <= k and (high is None or k <= high)


def table(folder: Path, worlds: int, budget: Budget, first: int = 0) -> dict[str, int]:
    """Print what each rule chooses in ``worlds`` worlds of each kind; returns how often ``auto`` was near
    with TPE, and how often its interval held the best K."""
    counted = {"worlds": 0, "near": 0, "held": 0}
    print(f"\n{budget.trials} trials of two seeds; d_sae, K; * both within one step of the best")
    for kind in KINDS:
        for number in range(first, first + worlds):
            tried = {
                sampler: trials_of(folder, kind, number, sampler, budget)
                for sampler in ("tpe", "random")
            }
            everything = [row for rows, _ in tried.values() for row in rows]
            best = best_of(everything, world_of(kind, number).atoms)
            for sampler, (rows, seconds) in tried.items():
                found = verdicts(rows, best)
                print(line(f"{kind} {number} {sampler}", found, seconds), flush=True)
                if sampler == "tpe":
                    counted["worlds"] += 1
                    counted["near"] += found["auto"].near
                    counted["held"] += bool(found["auto"].held)
    print(
        "auto, TPE: near the best in {near} of {worlds}, interval holds in {held}".format(**counted)
    )
    return counted


def line(name: str, found: dict[str, Verdict], seconds: float) -> str:
    """A world's line of the table."""
    first = next(iter(found.values()))
    cells = [f"{name:<22} best {first.d_sae}, {first.k}"]
    for rule, verdict in found.items():
        config = "none" if verdict.config is None else "{}, {}".format(*verdict.config)
        cells.append(f"{rule} {config}{' *' if verdict.near else ''}")
    held = {True: "holds", False: "misses", None: "none"}[found["auto"].held]
    return " | ".join([*cells, f"interval {held}", f"{seconds:.0f} s"])
