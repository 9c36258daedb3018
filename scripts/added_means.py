"""Explained variance of every variant when a constant is added to the data.

    python scripts/added_means.py

The same rows of a small planted world, with a constant of 0 to 100 times their spread added: in one
dimension, or along a random direction. Each variant is trained on them with the same settings. Prints a
table; the exit code is 1 when a variant's figures differ by more than 0.01.
"""

import sys

import torch
from torch import Tensor

import raysae

D_IN, ATOMS, RATE = 16, 24, 0.15
TIMES = (0, 3, 10, 30, 100)
TRAINING = {"epochs": 40, "batch_size": 256}
VARIANTS = (
    {"variant": "topk", "k": 4},
    {"variant": "batch_topk", "k": 4},
    {"variant": "matryoshka", "k": 4, "prefixes": [0.25, 1.0]},
    {"variant": "jumprelu", "l0_coefficient": 0.5},
    {"variant": "gated", "l1_coefficient": 1.0},
    {"variant": "relu_l1", "l1_coefficient": 1.0},
)
TOLERANCE = 0.01


def world(rows: int, atoms: Tensor, generator: torch.Generator) -> Tensor:
    """Rows ``[rows, d_in]`` that are sums of a few atoms ``[atoms, d_in]``."""
    active = torch.rand(rows, len(atoms), generator=generator) < RATE
    return (active * torch.rand(rows, len(atoms), generator=generator)) @ atoms


def main() -> int:
    """Train, print the table; the exit code."""
    generator = torch.Generator().manual_seed(0)
    atoms = torch.nn.functional.normalize(torch.randn(ATOMS, D_IN, generator=generator), dim=1)
    train, validation = world(4000, atoms, generator), world(800, atoms, generator)
    spread = float(train.std(0).norm())
    directions = {
        "one dimension": torch.eye(D_IN)[3],
        "a random direction": torch.nn.functional.normalize(
            torch.randn(D_IN, generator=generator), dim=0
        ),
    }
    apart = 0.0
    print("variant     constant in          " + "".join(f"{f'{t} times':>11}" for t in TIMES))
    for config in VARIANTS:
        found = []
        for name, direction_D in directions.items():
            row = []
            for times in TIMES:
                constant_D = times * spread * direction_D
                fit = raysae.fit(
                    {"d_sae": 32, **config}, train + constant_D, TRAINING,
                    validation=validation + constant_D, progress=False,
                )  # fmt: skip
                row.append(fit.metrics["explained_variance"])
            print(f"{config['variant']:<12}{name:<21}" + "".join(f"{ev:>11.4f}" for ev in row))
            found += row
        apart = max(apart, max(found) - min(found))
    print(f"largest difference of a variant: {apart:.4f}; allowed {TOLERANCE}")
    return int(apart > TOLERANCE)


if __name__ == "__main__":
    sys.exit(main())
