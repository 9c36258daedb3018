"""How a choice of d_sae and K carries over to other layers, and to the other half of the data.

    python scripts/carrying_over.py FOLDER [--model pocket|stories|both] [--rows 20000] [--epochs 3]

At every layer of the pocket model and of stories260K over GSM8K (``../shared``), a grid of d_sae and K
is trained with two seeds on each of two disjoint halves of the rows, and kept in FOLDER. Two tables
follow:

- carrying over: ``auto`` chooses on the first half, at the middle layer (``same``), at the first,
  middle and last layer with the settings of those between interpolated on a logarithmic scale
  (``layers``), or at the middle layer with K in the ratio of the layers' spread (``spread``: the
  participation ratio of the covariance), or at each layer (``full``, a sweep at each). The second half
  judges: how many doublings d_sae and K are off ``auto``'s choice there, and what is lost of explained
  variance and of the seeds' agreement against the config that the full sweep chose;
- halves: what ``auto`` chooses on each half and its intervals, and whether each holds the other's
  choice.
"""

import argparse
import json
import math
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from grids import Grid, streams, trials_on

from raysae.config.search import SelectConfig
from raysae.pocket.problems import make_problem
from raysae.records.rows import TrialRow
from raysae.sae.spread import participation_ratio
from raysae.sweep.selection.carrying import carried_between, scaled_by
from raysae.sweep.selection.rules import select
from raysae.training import TrainingConfig
from raysae.transformer.model_spec import POCKET, ModelSpec

SHARED = Path(__file__).parents[2] / "shared"
SIZES, KS = (64, 128, 256), (2, 4, 8, 16, 32)
POLICIES = ("full", "same", "layers", "spread")


@dataclass(frozen=True)
class Layer:
    """What was found at a layer: the trials and the choice of each half, and the spread of the first."""

    rows: tuple[list[TrialRow], list[TrialRow]]
    choices: tuple[dict[str, Any], dict[str, Any]]
    spread: float

    def chosen(self, half: int) -> tuple[int, int]:
        """The d_sae and K of a half's choice."""
        number = self.choices[half]["trial"]
        row = next(row for row in self.rows[half] if row.trial == number)
        return row.d_sae, row["sae.k"]

    def figure(self, half: int, config: tuple[int, int], name: str) -> float:
        """A figure of the grid's config nearest to ``config``, in doublings."""
        row = min(
            self.rows[half],
            key=lambda row: (
                abs(math.log2(row.d_sae / config[0])) + abs(math.log2(row["sae.k"] / config[1]))
            ),
        )
        return float(row[name])


def texts_of(name: str) -> tuple[ModelSpec, list[str]]:
    """A model and texts for it."""
    if name == "pocket":
        return ModelSpec(POCKET), [make_problem(5, number).prompt for number in range(8000)]
    lines = (SHARED / "data" / "gsm8k" / "train.jsonl").read_text().splitlines()
    read = [json.loads(line) for line in lines]
    spec = ModelSpec(str(SHARED / "models" / "stories260K"))
    return spec, [f"{line['question']} {line['answer']}" for line in read]


def layers_of(
    name: str, folder: Path, rows: int, grid: Grid, wanted: Sequence[int] | None
) -> list[Layer]:
    """The grids of both halves at the layers (None: all), trained where they are not in ``folder``."""
    found, held = [], rows // 10
    for number, x in enumerate(streams(*texts_of(name), 2 * (rows + held))):
        if wanted is not None and number not in wanted:
            continue
        started = time.monotonic()
        halves = x.split(rows + held)
        one, two = (
            trials_on(grid, half[:rows], half[rows:], folder / f"{name}-{number}-{place}.parquet")
            for place, half in enumerate(halves)
        )
        first, second = (select(trials, SelectConfig())["choices"]["auto"] for trials in (one, two))
        found.append(Layer((one, two), (first, second), participation_ratio(halves[0])))
        seconds = time.monotonic() - started
        print(f"{name}, layer {number}: {seconds:.0f} s, spread {found[-1].spread:.1f}", flush=True)
    return found


def carried(layers: Sequence[Layer], policy: str, number: int) -> tuple[int, int]:
    """The config that a policy gives the layer, from what the first halves chose."""
    if policy == "full":
        return layers[number].chosen(0)
    middle = (len(layers) - 1) // 2
    d_sae, k = layers[middle].chosen(0)
    if policy == "same":
        return d_sae, k
    if policy == "spread":
        return d_sae, scaled_by(k, layers[number].spread / layers[middle].spread, d_sae)
    swept = {at: layers[at].chosen(0) for at in (0, middle, len(layers) - 1)}
    return carried_between(swept, number)


def print_carrying(name: str, layers: Sequence[Layer]) -> None:
    """Print each policy's config at each layer, and its losses on average."""
    print(f"\n{name}: d_sae, K at {len(layers)} layers; judged by the other half")
    print(f"{'':>8}{'layers':>{12 * len(layers)}}   d_sae off   K off   EV lost   agreement lost")
    totals = defaultdict[str, list[tuple[float, ...]]](list)
    for policy in POLICIES:
        cells = []
        for number, layer in enumerate(layers):
            config, full, judge = carried(layers, policy, number), layer.chosen(0), layer.chosen(1)
            cells.append("{}, {}".format(*config))
            off = [abs(math.log2(a / b)) for a, b in zip(config, judge, strict=True)]
            lost = [
                layer.figure(1, full, figure) - layer.figure(1, config, figure)
                for figure in ("explained_variance", "stability")
            ]
            totals[policy].append((*off, *lost))
        d, k, ev, agreement = (fmean(column) for column in zip(*totals[policy], strict=True))
        print(
            f"{policy:>8}" + "".join(f"{cell:>12}" for cell in cells)
            + f"{d:12.2f}{k:8.2f}{ev:10.4f}{agreement:17.4f}"
        )  # fmt: skip


def _holds(interval: dict[str, list[int | None]] | None, config: tuple[int, int]) -> bool | None:
    if interval is None:
        return None
    return all(
        (low or 0) <= value <= (math.inf if high is None else high)
        for (low, high), value in zip(
            (interval["sae.d_sae"], interval["sae.k"]), config, strict=True
        )
    )


def _words(ends: Sequence[int | None]) -> str:
    """Such as ``4-8``, or ``8-`` where it is open above."""
    return "-".join("" if end is None else str(end) for end in ends)


def print_halves(name: str, layers: Sequence[Layer]) -> None:
    """Print what each half chooses, and what its interval says of the other's choice."""
    print(f"\n{name}: d_sae, K by each half; intervals of K and d_sae; holds the other's choice")
    for number, layer in enumerate(layers):
        cells = []
        for half in (0, 1):
            choice = layer.choices[half]
            interval = choice.get("interval")
            told = "no interval"
            if interval is not None:
                told = f"K {_words(interval['sae.k'])}, d_sae {_words(interval['sae.d_sae'])}"
            config = "{}, {}".format(*layer.chosen(half))
            holds = _holds(interval, layer.chosen(1 - half))
            ev = layer.figure(half, layer.chosen(half), "explained_variance")
            cells.append(f"{config} (EV {ev:.3f}; {told}; {choice['sure']}; holds: {holds})")
        print(f"layer {number}: " + " | ".join(cells))


def main() -> int:
    """Train what is missing, and print the tables; returns 0."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", choices=["pocket", "stories", "both"], default="both")
    parser.add_argument("--rows", type=int, default=20_000, help="training rows of each half")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--layers", type=int, nargs="+", help="these alone")
    args = parser.parse_args()
    torch.set_num_threads(1)
    training = TrainingConfig(epochs=args.epochs, batch_size=256, lr=3e-3, evaluations=1)
    for name in ("pocket", "stories") if args.model == "both" else (args.model,):
        grid = Grid(SIZES, KS, training)
        layers = layers_of(name, args.folder, args.rows, grid, args.layers)
        print_carrying(name, layers)
        print_halves(name, layers)
    return 0


if __name__ == "__main__":
    sys.exit(main())
