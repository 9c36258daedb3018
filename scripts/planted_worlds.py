"""Worlds drawn from ranges by their number, and whether each rule finds what is best in them.

``scripts/planted_optima.py --part auto`` prints the table. A world is independent (random atoms, one
rate) or hard (see ``raysae.activations.hard_world``). The best d_sae is that of the trial with the best
``mcc``, or any whose best ``mcc`` is within ``TIE`` of that: past the number of atoms larger ones differ
in the fourth decimal. The best K has the best ``f1`` among the trials of the d_sae nearest to the atoms.
"""

import math
import random
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from grids import Grid, trials_on
from torch import Tensor

from raysae.activations.hard_world import HardWorld
from raysae.activations.synthetic import SuperpositionWorld
from raysae.config import parse_recipe
from raysae.config.search import SelectConfig
from raysae.records.rows import TrialRow
from raysae.records.tables import read_trials
from raysae.sae.truth import Truth
from raysae.sweep.search.proposals import make_proposer
from raysae.sweep.selection.rules import select
from raysae.training import TrainingConfig

SIZES, KS = [16, 32, 64, 128, 256, 512], [1, 2, 3, 4, 6, 8, 12, 16, 24, 32]
KINDS = ("independent", "hard")
TIE = 0.02
"""Values of ``mcc`` that are no farther apart count as equal."""
RIGHT = ("d_sae and K within one tried step of the best", "of the interval: holds the best K")


@dataclass(frozen=True)
class Budget:
    """What a sweep of one world may take."""

    rows: int = 300_000
    epochs: int = 6
    trials: int = 30
    batch_size: int = 512
    scale: int = 1
    """By what the worlds are smaller, for machines that are slow."""
    sizes: tuple[int, ...] = tuple(SIZES)
    ks: tuple[int, ...] = tuple(KS)

    def scaled(self, scale: int) -> "Budget":
        """The same for worlds that are ``scale`` times smaller, with sizes and K up to as much less."""
        sizes = tuple(size for size in SIZES if size <= SIZES[-1] // scale)
        ks = tuple(k for k in KS if k <= KS[-1] // scale)
        return replace(self, scale=scale, sizes=sizes, ks=ks)


class Best(NamedTuple):
    """What is best in a world."""

    sizes: tuple[int, ...]
    """The d_sae at which the truth is recovered best, up to noise."""
    k: int

    def __str__(self) -> str:
        """Such as ``64 to 512, 3``."""
        ends = dict.fromkeys((self.sizes[0], self.sizes[-1]))
        return f"{' to '.join(map(str, ends))}, {self.k}"


@dataclass(frozen=True)
class Verdict:
    """What is best in a world, and what a rule chose."""

    best: Best
    config: tuple[int, int] | None
    near: bool
    """Whether both are within one tried step of the best."""
    held: bool | None
    """Whether the rule's interval holds the best K; None without an interval."""


def world_of(kind: str, number: int, scale: int = 1) -> SuperpositionWorld | HardWorld:
    """The world of this kind and number; with ``scale`` 2 of half the atoms, dimensions and families."""
    draw = random.Random(f"{kind} {number}")
    atoms, d_in = (n // scale for n in (draw.choice([64, 128, 256]), draw.choice([48, 64, 96])))
    if kind == "independent":
        return SuperpositionWorld(d_in, atoms, p=draw.uniform(2, 6) / atoms, seed=500 + number)
    return HardWorld(
        d_in=d_in, atoms=atoms, seed=500 + number, rate_exponent=draw.uniform(0.3, 0.8),
        max_rate=draw.uniform(0.2, 0.4), min_rate=draw.uniform(0.8, 2.0) / atoms,
        roots=draw.choice([4, 8, 12]) // scale, children=draw.choice([3, 4]),
        exclusive=draw.choice([0, 0.5, 1]), correlation_rank=draw.choice([0, 8]),
        spread=draw.uniform(0.1, 0.3), bias=draw.uniform(0, 1),
        near_orthogonal=draw.random() < 0.5, noise=draw.choice([0.0, 0.1]),
    )  # fmt: skip


def grid_of(folder: Path, kind: str, number: int, budget: Budget) -> tuple[list[TrialRow], float]:
    """Every config of this world as a trial, and the seconds that took; read where it was done before."""
    started, file = time.monotonic(), folder / f"{kind}-{number}.parquet"
    if file.exists():
        return read_trials(file), 0.0
    world, held = world_of(kind, number, budget.scale), max(budget.rows // 20, 1000)
    x, fired = world.sample(budget.rows + 3 * held)
    end = budget.rows + held
    truth = Truth(world.truth(), x[end:], fired[end:])
    variant = "topk" if kind == "independent" else "batch_topk"
    return grid_on(file, x[:end], truth, variant, budget), time.monotonic() - started


def grid_on(
    file: Path, x: Tensor, truth: Truth | None, variant: str, budget: Budget
) -> list[TrialRow]:
    """Every config as a trial on rows ``x``, of which those beyond the budget's are held out; read from
    ``file`` where it is there."""
    training = TrainingConfig(
        epochs=budget.epochs, batch_size=budget.batch_size, lr=3e-3, evaluations=1
    )
    grid = Grid(budget.sizes, budget.ks, training, variant, most=1.0)
    return trials_on(grid, x[: budget.rows], x[budget.rows :], file, truth)


def searched(
    rows: Sequence[TrialRow], sampler: str, trials: int, seed: int, **sweep: Any
) -> list[TrialRow]:
    """The trials that a search of so many would have run, in their order, out of all configs ``rows``."""
    by_config = {(row.d_sae, row.k): row for row in rows}
    space = {
        "sae.d_sae": {"choices": sorted({row.d_sae for row in rows})},
        "sae.k": {"choices": sorted({row["sae.k"] for row in rows})},
    }
    settings = {"sampler": sampler, "trials": trials, "seeds_per_trial": 2, "space": space, **sweep}
    settings.setdefault("startup_trials", min(10, trials))
    recipe = parse_recipe({"seed": seed, "store": "unused", "source": None, "sweep": settings})
    proposer, found = make_proposer(recipe), dict[int, TrialRow]()
    for number in range(trials):
        proposed = proposer.propose(number, found)
        if proposed is None:
            break
        found[number] = replace(by_config[proposed["sae.d_sae"], proposed["sae.k"]], trial=number)
    return list(found.values())


def best_of(rows: list[TrialRow], atoms: int, tie: float = TIE) -> Best:
    """The d_sae at which the truth is best recovered, with those whose best ``mcc`` is within ``tie`` of
    that, and the K with the best F1."""
    done = [row for row in rows if row.done]
    most = max(row["mcc"] for row in done)
    sizes = sorted({row.d_sae for row in done if row["mcc"] >= most - tie})
    nearest = min({row.d_sae for row in done}, key=lambda d_sae: abs(math.log2(d_sae / atoms)))
    k = max((row for row in done if row.d_sae == nearest), key=lambda row: row["f1"]).k
    assert k is not None
    return Best(tuple(sizes), k)


def verdicts(rows: list[TrialRow], best: Best) -> dict[str, Verdict]:
    """What each rule chooses among the trials, and whether it is near the best."""
    choices = select(rows, SelectConfig(ev_floor=0.8))["choices"]
    by_number = {row.trial: row for row in rows}
    found = {}
    for rule, choice in choices.items():
        if rule == "pareto":
            continue
        row = by_number.get(choice["trial"])
        config = None if row is None or row.k is None else (row.d_sae, row.k)
        near = (
            config is not None
            and min(steps(config[0], size, SIZES) for size in best.sizes) <= 1
            and steps(config[1], best.k, KS) <= 1
        )
        found[rule] = Verdict(best, config, near, _holds(choice.get("interval"), best.k))
    return found


def reached(rows: Sequence[TrialRow], verdict: Verdict) -> float:
    """The F1 of a rule's choice, as a part of the best of all configs; 0 for none."""
    by_config = {(row.d_sae, row.k): float(row["f1"]) for row in rows}
    return 0.0 if verdict.config is None else by_config[verdict.config] / max(by_config.values())


def steps(one: int, other: int, values: list[int]) -> int:
    """How many values of the space two of them are apart."""
    return abs(values.index(one) - values.index(other))


def _holds(interval: dict[str, list[int | None]] | None, k: int) -> bool | None:
    if interval is None:
        return None
    low, high = interval["sae.k"]
    assert low is not None
    return low <= k and (high is None or k <= high)


def table(
    folder: Path,
    worlds: int,
    budget: Budget,
    first: int = 0,
    samplers: Sequence[str] = ("tpe", "random"),
) -> dict[str, int]:
    """Print what each rule chooses in ``worlds`` worlds of each kind; returns how often ``auto`` was near
    with TPE, and how often its interval held the best K."""
    counted, f1 = Counter[tuple[str, str]](), defaultdict[tuple[str, str], list[float]](list)
    print(
        f"\n{budget.trials} trials of two seeds; d_sae, K; * both within one step of the best, where "
        f"d_sae whose mcc differs by at most {TIE} are equal"
    )
    for number in range(first, first + worlds):
        for kind in KINDS:
            rows, seconds = grid_of(folder, kind, number, budget)
            atoms = world_of(kind, number, budget.scale).atoms
            best = best_of(rows, atoms)
            for sampler in samplers:
                tried = searched(rows, sampler, budget.trials, number)
                found = verdicts(tried, best)
                print(line(f"{kind} {number} {sampler}", found, seconds), flush=True)
                for rule, verdict in found.items():
                    counted[sampler, rule] += verdict.near
                    f1[sampler, rule].append(reached(rows, verdict))
                counted[sampler, "interval of auto"] += bool(found["auto"].held)
                strictly = verdicts(tried, best_of(rows, atoms, tie=0.0))
                for rule, verdict in strictly.items():
                    counted[f"{sampler}, the one d_sae of the largest mcc", rule] += verdict.near
    print(f"\nright of {len(KINDS) * worlds}: " + ", ".join(RIGHT))
    for case in dict.fromkeys(case for case, _ in counted):
        cells = [f"{rule} {count}" for (one, rule), count in counted.items() if one == case]
        print(f"{case:>7}: " + ", ".join(cells))
    for sampler in samplers:
        parts = [f"{rule} {fmean(f1[one, rule]):.3f}" for one, rule in f1 if one == sampler]
        print(f"{sampler:>7}, F1 of the choice as a part of the best: " + ", ".join(parts))
    return {
        "worlds": len(KINDS) * worlds,
        "near": counted["tpe", "auto"],
        "held": counted["tpe", "interval of auto"],
    }


def line(name: str, found: dict[str, Verdict], seconds: float) -> str:
    """A world's line of the table."""
    first = next(iter(found.values()))
    cells = [f"{name:<22} best {first.best}"]
    for rule, verdict in found.items():
        config = "none" if verdict.config is None else "{}, {}".format(*verdict.config)
        cells.append(f"{rule} {config}{' *' if verdict.near else ''}")
    held = {True: "holds", False: "misses", None: "none"}[found["auto"].held]
    return " | ".join([*cells, f"interval {held}", f"{seconds:.0f} s"])
