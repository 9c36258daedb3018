"""Which rule finds the best F1 in worlds of SAELens's own generator.

    python scripts/saelens_worlds.py FOLDER [--worlds 10] [--first 0] [--rows 60000] [--epochs 4]

Worlds are drawn from ranges by their number: 64 to 256 features in 48 to 96 dimensions, Zipfian firing
probabilities, families with exclusive siblings, low-rank correlation, magnitudes with a spread, a bias.
The rows come from ``sae_lens.synthetic`` in the peers' environment (scripts/peers.sh makes it;
RAYSAE_PEERS names another's python). All configs are then trained here (batch_topk, two seeds) and kept
in FOLDER, and a search of 30 trials by TPE is judged as by ``planted_optima.py --part auto``: right
where d_sae is within a step of the best ``mcc`` and K within one of the best ``f1``. The last line has
the F1 that each rule's choice reaches, as a part of the best of all configs.
"""

import argparse
import json
import os
import random
import subprocess
import sys
from collections import Counter, defaultdict
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from planted_worlds import Budget, best_of, grid_on, line, reached, searched, verdicts
from safetensors.torch import load_file

from raysae.records.rows import TrialRow
from raysae.sae.truth import Truth

ROOT = Path(__file__).parents[1]
PROGRAM = Path(__file__).parent / "peers" / "saelens_world.py"


def settings_of(number: int, scale: int = 1) -> dict[str, Any]:
    """The settings of the world of this number, as SAELens's SyntheticModelConfig has them."""
    draw = random.Random(f"saelens {number}")
    features, width = (n // scale for n in (draw.choice([64, 128, 256]), draw.choice([48, 64, 96])))
    most = draw.uniform(0.2, 0.4)
    return {
        "num_features": features, "hidden_dim": width, "seed": 900 + number,
        "firing_probability": {
            "exponent": draw.uniform(0.3, 0.8), "max_prob": most,
            "min_prob": draw.uniform(0.8, 2.0) / features,
        },
        "hierarchy": {
            "total_root_nodes": draw.choice([4, 8, 12]) // scale, "branching_factor": draw.choice([3, 4]),
            "max_depth": 1, "mutually_exclusive_portion": draw.choice([0.0, 0.5, 1.0]),
            "compensate_probabilities": False, "scale_children_by_parent": True,
        },
        "correlation": draw.choice([None, {"rank": 8, "correlation_scale": 0.1}]),
        "orthogonalization": draw.choice([None, {"num_steps": 200}]),
        "std_firing_magnitudes": draw.uniform(0.1, 0.3), "bias": draw.uniform(0, 1),
    }  # fmt: skip


def peers_python() -> str:
    """The python of the environment that has SAELens."""
    return os.environ.get("RAYSAE_PEERS") or str(ROOT / ".peers" / "bin" / "python")


def world_rows(folder: Path, number: int, budget: Budget) -> list[TrialRow]:
    """Every config as a trial on the world of this number; read from ``folder`` where it was trained."""
    settings, held = settings_of(number, budget.scale), max(budget.rows // 20, 1000)
    data = folder / f"data-{number}"
    if not (grid := folder / f"saelens-{number}.parquet").exists():
        rows = {"rows": budget.rows + held, "sample": 2 * held}
        data.with_suffix(".json").write_text(json.dumps({**settings, **rows}))
        subprocess.run(
            [peers_python(), str(PROGRAM), str(data)], check=True, capture_output=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        )  # fmt: skip
        made = load_file(f"{data}.safetensors")
        x, truth = made["x"], Truth(made["atoms"], made["x"][-2 * held :], made["fired"])
        grid_on(grid, x[: budget.rows + held], truth, "batch_topk", budget)
        Path(f"{data}.safetensors").unlink()
    return grid_on(grid, torch.empty(0), None, "batch_topk", budget)


def main() -> int:
    """Print the table; returns 0, or 2 without the peers' environment."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--worlds", type=int, default=10)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--rows", type=int, default=60_000)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--batch-size", type=int, default=512)
    parser.add_argument("--scale", type=int, default=1, help="2 halves the worlds")
    args = parser.parse_args()
    if not Path(peers_python()).exists():
        print("error: no environment with SAELens: scripts/peers.sh makes it", file=sys.stderr)
        return 2
    torch.set_num_threads(1)
    args.folder.mkdir(parents=True, exist_ok=True)
    budget = Budget(args.rows, args.epochs, batch_size=args.batch_size).scaled(args.scale)
    near, f1 = Counter[str](), defaultdict[str, list[float]](list)
    for number in range(args.first, args.first + args.worlds):
        rows = world_rows(args.folder, number, budget)
        tried = searched(rows, "tpe", budget.trials, number)
        features = settings_of(number, budget.scale)["num_features"]
        found = verdicts(tried, best_of(rows, features))
        strictly = verdicts(tried, best_of(rows, features, tie=0.0))
        print(line(f"saelens {number}", found, 0), flush=True)
        near["interval of auto"] += bool(found["auto"].held)
        for rule, verdict in found.items():
            near[rule] += verdict.near
            near[f"{rule}, the one d_sae of the largest mcc"] += strictly[rule].near
            f1[rule].append(reached(rows, verdict))
    print(f"right of {args.worlds}: " + ", ".join(f"{rule} {n}" for rule, n in near.items()))
    print("F1 reached: " + ", ".join(f"{rule} {fmean(parts):.3f}" for rule, parts in f1.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
