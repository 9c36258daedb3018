"""Samplers, a stop and a first look over K against the default, at equal cost, in planted worlds.

    python scripts/samplers.py FOLDER [--worlds 10] [--first 0] [--rows 60000] [--epochs 4] [--seeds 5]

FOLDER is that of ``planted_optima.py --part auto --keep``: every config of each world as a trial. Three
tables, each over all worlds of both kinds:

- samplers: of searches of 10, 15, 20 and 30 trials by each sampler with --seeds seeds, how often the
  choice of ``auto`` is right (d_sae within a step of the best mcc, K within one of the best F1), and
  the mean hypervolume of the front of explained variance and log2 L0;
- patience: of the searches of 30 trials by TPE, what ends them after so many trials without a new
  choice;
- first look: one HierarchicalTopK SAE for each d_sae and seed, read at every K (trained here, kept in
  FOLDER), against all configs trained one by one, and against TPE with as many trials as it costs.
"""

import argparse
import math
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from planted_worlds import KINDS, Best, Budget, best_of, grid_of, searched, verdicts, world_of

from raysae.records.rows import TrialRow
from raysae.records.tables import read_trials
from raysae.sweep.first_look import first_look
from raysae.training import TrainingConfig
from raysae.training.rows import Rows

SAMPLERS, LENGTHS = ("tpe", "gp", "nsga2", "random"), (10, 15, 20, 30)
STARTUP = 8
LARGEST = 32


class World(NamedTuple):
    """A world's trials and what is best in it."""

    kind: str
    number: int
    rows: list[TrialRow]
    best: Best


def right(rows: Sequence[TrialRow], best: Best) -> bool:
    """Whether ``auto`` chooses rightly among the trials."""
    return verdicts(list(rows), best)["auto"].near


def hypervolume(rows: Sequence[TrialRow]) -> float:
    """That of the front of explained variance (above 0) and log2 L0 (below ``LARGEST``)."""
    points = sorted(
        (math.log2(LARGEST) - math.log2(max(row.l0, 0.5)), row.explained_variance) for row in rows
    )
    area = left = 0.0
    for place, (width, _) in enumerate(points):
        if width > left:
            area += (width - left) * max(ev for _, ev in points[place:])
            left = width
    return area


def samplers(worlds: Sequence[World], seeds: int, names: Sequence[str], trials: int) -> None:
    """Print the table of samplers."""
    lengths = [count for count in LENGTHS if count <= trials]
    print(f"\nsamplers, {len(worlds)} worlds, {seeds} seeds: auto right, and hypervolume")
    print(f"{'trials':>8}" + "".join(f"{count:>18}" for count in lengths) + "   seconds a search")
    for sampler in names:
        hits, areas = defaultdict[int, list[bool]](list), defaultdict[int, list[float]](list)
        started = time.process_time()
        for world in worlds:
            for seed in range(seeds):
                found = searched(world.rows, sampler, lengths[-1], seed, startup_trials=STARTUP)
                for count in lengths:
                    hits[count].append(right(found[:count], world.best))
                    areas[count].append(hypervolume(found[:count]))
        each = (time.process_time() - started) / (len(worlds) * seeds)
        cells = [f"{fmean(hits[c]):.0%}, {fmean(areas[c]):.3f}" for c in lengths]
        print(
            f"{sampler:>8}" + "".join(f"{cell:>18}" for cell in cells) + f"{each:19.1f}", flush=True
        )


def patience(worlds: Sequence[World], seeds: int) -> None:
    """Print what a stop after so many trials without a new choice saves and costs."""
    print("\npatience, TPE: trials without a new choice of auto after which a search of 30 ends")
    print("patience   trials run   the choice of all 30   right   right of all 30")
    runs = []
    for world in worlds:
        for seed in range(seeds):
            found = searched(world.rows, "tpe", LENGTHS[-1], seed, startup_trials=STARTUP)
            choices = [verdicts(found[:n], world.best)["auto"] for n in range(1, len(found) + 1)]
            runs.append(choices)
    for wait in (4, 6, 8, 10):
        ends = [_end(run, wait) for run in runs]
        pairs = [(run[end], run[-1]) for run, end in zip(runs, ends, strict=True)]
        print(
            f"{wait:>8}{fmean(ends) + 1:13.1f}{fmean(a.config == b.config for a, b in pairs):23.0%}"
            f"{fmean(a.near for a, _ in pairs):8.0%}{fmean(b.near for _, b in pairs):18.0%}",
            flush=True,
        )


def _end(choices: Sequence, wait: int) -> int:
    """The place of the trial after which the search ends."""
    since = 0
    for place in range(1, len(choices)):
        since = since + 1 if choices[place].config == choices[place - 1].config else 0
        if since >= wait and place + 1 >= STARTUP + wait:
            return place
    return len(choices) - 1


def look_of(folder: Path, world: World, budget: Budget) -> list[TrialRow]:
    """The trials of a first look; read from ``folder`` where they are there."""
    file = folder / f"{world.kind}-{world.number}-look.parquet"
    if not file.exists():
        held = max(budget.rows // 20, 1000)
        x, _ = world_of(world.kind, world.number, budget.scale).sample(budget.rows + held)
        training = TrainingConfig(
            epochs=budget.epochs, batch_size=budget.batch_size, lr=3e-3, evaluations=1
        )
        train, validation = Rows(x[: budget.rows]), Rows(x[budget.rows :])
        started = time.process_time()
        rows = first_look(train, validation, training, budget.sizes, budget.ks)
        each = (time.process_time() - started) / len(rows)
        pq.write_table(pa.Table.from_pylist([{**row, "seconds": each} for row in rows]), file)
    return read_trials(file)


def looks(folder: Path, worlds: Sequence[World], budget: Budget, seeds: int) -> None:
    """Print the table of the first look."""
    print("\nfirst look: d_sae, K by auto in all configs | in the look, its part of their seconds")
    same, hits, costs, equal, lost = [], [], [], [], []
    for world in worlds:
        look = look_of(folder, world, budget)
        spent = sum(row.seconds or 0 for row in look)
        share = spent / sum(row.seconds or 0 for row in world.rows)
        whole, one = (verdicts(list(rows), world.best)["auto"] for rows in (world.rows, look))
        trials = max(round(share * len(world.rows)), 2)
        beside = [
            right(searched(world.rows, "tpe", trials, seed, startup_trials=4), world.best)
            for seed in range(seeds)
        ]
        full = {(row.d_sae, row.k): row.explained_variance for row in world.rows}
        lost.append(fmean(full[row.d_sae, row.k] - row.explained_variance for row in look))
        same.append(whole.config is not None and one.config is not None and
                    whole.config[1] == one.config[1])  # fmt: skip
        hits.append(one.near)
        costs.append(share)
        equal.append(fmean(beside))
        print(
            f"{world.kind} {world.number}: best {world.best} | {whole.config} | {one.config}"
            f"{' *' if one.near else ''}, {share:.0%}; TPE of {trials} trials right {equal[-1]:.0%}; "
            f"EV lost {lost[-1]:.4f}",
            flush=True,
        )
    print(
        f"the look: right {sum(hits)} of {len(hits)}, the same K as all configs in {sum(same)}, for "
        f"{fmean(costs):.0%} of their seconds; TPE at equal cost right {fmean(equal):.0%}; EV lost "
        f"{fmean(lost):.4f}"
    )


def main() -> int:
    """Print the tables; returns 0."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--worlds", type=int, default=10)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--rows", type=int, default=60_000)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--batch-size", type=int, default=512)
    parser.add_argument("--scale", type=int, default=1)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--samplers", nargs="+", default=list(SAMPLERS))
    parser.add_argument("--trials", type=int, default=LENGTHS[-1], help="of the table of samplers")
    parser.add_argument("--part", choices=["samplers", "patience", "look", "all"], default="all")
    args = parser.parse_args()
    torch.set_num_threads(1)
    budget = Budget(args.rows, args.epochs, 30, args.batch_size).scaled(args.scale)
    worlds = []
    for number in range(args.first, args.first + args.worlds):
        for kind in KINDS:
            rows, _ = grid_of(args.folder, kind, number, budget)
            best = best_of(rows, world_of(kind, number, args.scale).atoms)
            worlds.append(World(kind, number, rows, best))
    if args.part in ("samplers", "all"):
        samplers(worlds, args.seeds, args.samplers, args.trials)
    if args.part in ("patience", "all"):
        patience(worlds, args.seeds)
    if args.part in ("look", "all"):
        looks(args.folder, worlds, budget, args.seeds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
