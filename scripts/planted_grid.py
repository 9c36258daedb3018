"""Which rule finds what is best in small worlds, from grids that are trained once and judged again.

    python scripts/planted_grid.py FOLDER [--worlds 6] [--first 30] [--only]

For each of ``--worlds`` independent and hard worlds from number ``--first`` on, 30 configs (four d_sae,
eight K) are trained with two seeds without Ray, and their rows are kept in FOLDER/KIND-NUMBER.parquet; a
world that is there is not trained again. ``--only`` trains none. The table then judges each rule on the
whole grid, and on samples of 12 and 20 of its configs with two seeds and with one. A rule is right where
its d_sae is within one step of the best ``mcc`` and its K within one of the best ``f1``.
"""

import argparse
import random
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from grids import Grid, trials_on
from planted_worlds import KINDS, best_of

from raysae.activations.hard_world import HardWorld
from raysae.activations.synthetic import SuperpositionWorld
from raysae.config.search import SelectConfig
from raysae.records.rows import TrialRow
from raysae.records.tables import read_trials
from raysae.sae.truth import Truth
from raysae.sweep.selection.rules import select
from raysae.training import TrainingConfig

ROWS, VALIDATION, SAMPLE = 60_000, 3000, 9000
KS = (1, 2, 3, 4, 6, 8, 12, 16)
TRAINING = TrainingConfig(epochs=5, batch_size=512, lr=3e-3, evaluations=1)
SAMPLES = 6


def small_world(kind: str, number: int) -> SuperpositionWorld | HardWorld:
    """A world small enough that its grid takes a minute or two of one core."""
    draw = random.Random(f"{'easy' if kind == 'independent' else 'hard'}{number}")
    if kind == "independent":
        d_in, atoms = draw.choice([16, 24, 32]), draw.choice([32, 48, 64])
        return SuperpositionWorld(d_in, atoms, draw.uniform(1.5, 4) / atoms, number)
    d_in, atoms = draw.choice([32, 48]), draw.choice([64, 96, 128])
    roots = draw.choice([4, 8])
    return HardWorld(
        d_in=d_in, atoms=atoms, seed=number, rate_exponent=draw.uniform(0.3, 0.8),
        max_rate=draw.uniform(0.2, 0.4), min_rate=draw.uniform(0.012, 0.025), roots=roots,
        children=draw.choice([3, 4]), exclusive=draw.choice([0, 0.5, 1]),
        correlation_rank=draw.choice([0, 8]), spread=draw.uniform(0.1, 0.3), bias=draw.uniform(0, 0.5),
        near_orthogonal=draw.random() < 0.5, noise=draw.choice([0, 0, 0.1]),
    )  # fmt: skip


def train(kind: str, number: int, file: Path) -> None:
    """Train a world's grid and write its rows as trials."""
    world = small_world(kind, number)
    x, fired = world.sample(ROWS + VALIDATION + SAMPLE)
    end = ROWS + VALIDATION
    truth = Truth(world.truth(), x[end:], fired[end:])
    variant = "topk" if kind == "independent" else "batch_topk"
    sizes = (world.atoms // 4, world.atoms // 2, world.atoms, 2 * world.atoms)
    trials_on(Grid(sizes, KS, TRAINING, variant), x[:ROWS], x[ROWS:end], file, truth)


def cases(rows: list[TrialRow]) -> Iterator[tuple[str, list[TrialRow]]]:
    """The whole grid and samples of its configs, with two seeds and with one."""
    for seeds, known in ((2, rows), (1, [_one_seed(row) for row in rows])):
        yield f"grid, seeds {seeds}", known
        for count in (12, 20):
            for number in range(SAMPLES):
                drawn = random.Random(number).sample(known, min(count, len(known)))
                yield f"{count} configs, seeds {seeds}", drawn


def _one_seed(row: TrialRow) -> TrialRow:
    columns = {
        name: value
        for name, value in row.items()
        if not name.startswith("stability") and not name.endswith("_seeds")
    }
    return TrialRow.of_columns(columns)


def judge(rows: list[TrialRow], atoms: int, counted: Counter[tuple[str, str]]) -> None:
    """Count where each rule is right, and for ``auto`` where its interval holds and how sure it is."""
    best = best_of(rows, atoms)
    sizes: list[int] = sorted({row.d_sae for row in rows})
    ks: list[int] = sorted({row["sae.k"] for row in rows})
    for case, known in cases(rows):
        counted[case, "cases"] += 1
        by_number = {row.trial: row for row in known}
        for rule, choice in select(known, SelectConfig())["choices"].items():
            row = by_number.get(choice["trial"])
            right = row is not None and (
                min(abs(sizes.index(row.d_sae) - sizes.index(one)) for one in best.sizes) <= 1
                and abs(ks.index(row["sae.k"]) - ks.index(best.k)) <= 1
            )
            counted[case, rule] += right
            if rule == "auto":
                low, high = (choice["interval"] or {}).get("sae.k", (0, -1))
                counted[case, "interval holds"] += low <= best.k <= (high or max(ks))
                counted[case, choice["sure"]] += 1
                counted[case, f"{choice['sure']} and right"] += right


def main() -> int:
    """Train what is missing, and print the table; returns 0."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--worlds", type=int, default=6)
    parser.add_argument("--first", type=int, default=30)
    parser.add_argument("--only", action="store_true", help="judge what is there")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    counted: Counter[tuple[str, str]] = Counter()
    for kind in KINDS:
        for number in range(args.first, args.first + args.worlds):
            file, started = args.folder / f"{kind}-{number}.parquet", time.time()
            if not file.exists() and not args.only:
                train(kind, number, file)
                print(f"{kind} {number}: {time.time() - started:.0f} s", flush=True)
            if file.exists():
                judge(read_trials(file), small_world(kind, number).atoms, counted)
    for case in dict.fromkeys(case for case, _ in counted):
        cells = [f"{what} {counted[case, what]}" for one, what in counted if one == case]
        print(f"{case}: " + ", ".join(cells))
    return 0


if __name__ == "__main__":
    sys.exit(main())
