"""Test whether training finds a known dictionary; print a row per training and the required values.

    python scripts/recovery.py [--quick] [--seeds 2]

Batch size 1,024, lr 3e-3. The worlds do not use torch's random generator, so no SAE starts from the
truth. --quick runs only trainings of 1,000 steps. The exit code is 1 when a row misses its required
value.
"""

import argparse
import itertools
import sys
from typing import Any

import torch
from torch import Tensor

import raysae
from raysae.activations.synthetic import HierarchicalWorld, SuperpositionWorld
from raysae.sae.dictionary import mmcs
from raysae.training import Fit

BATCH, LR, ROWS = 1024, 3e-3, 204_800
SIMPLE = SuperpositionWorld(d_in=64, atoms=128, p=0.03)

RECOVERY: list[tuple[SuperpositionWorld, int, int, float, float | None]] = [
    (SIMPLE, 4, 1000, 0.97, 0.9),
    (SIMPLE, 4, 4000, 0.995, 0.9),
    (SuperpositionWorld(d_in=64, atoms=256, p=0.02), 5, 4000, 0.99, 0.9),
    (SuperpositionWorld(d_in=128, atoms=512, p=0.01), 5, 1000, 0.97, None),
]
"""World, k, steps, least mmcs of each seed, least stability of each two seeds (None: no limit)."""

VARIANTS: dict[str, dict[str, Any]] = {
    "batch_topk": {"k": 4},
    "matryoshka": {"k": 4},
    "jumprelu": {"l0_coefficient": 1.0},
    "gated": {"l1_coefficient": 3.0},
    "relu_l1": {"l1_coefficient": 1.0},
}
"""The other variants, with settings for the simple world; their rows have no required value."""

short: list[str] = []
"""The rows that missed their required value."""


def main() -> int:
    """Run all trainings; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="only the rows of 1,000 steps")
    parser.add_argument("--seeds", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(1)
    for world, k, steps, least, stable in RECOVERY:
        if not args.quick or steps <= 1000:
            recovery(world, k, steps, least, stable, args.seeds)
    white_noise()
    other_variants()
    hierarchy(args.seeds)
    shrinkage(args.seeds)
    print("\n" + ("short of what is asked: " + "; ".join(short) if short else "all rows reach it"))
    return 1 if short else 0


def recovery(
    world: SuperpositionWorld, k: int, steps: int, least: float, stable: float | None, seeds: int
) -> None:
    """Train TopK with a latent per atom of the world; print mmcs per seed, and stability."""
    name = f"{world.d_in} dims, {world.atoms} atoms, p {world.p:g}, k {k}, {steps:,} steps"
    print(f"\n{name}: mmcs at least {least:g}")
    train, validation = world.rows(min(ROWS, steps * BATCH)), world.rows(8192, part=1)
    config = {"variant": "topk", "d_sae": world.atoms, "k": k}
    fits = [trained(config, train, validation, steps, seed) for seed in range(seeds)]
    for seed, fit in enumerate(fits):
        check(report(f"seed {seed}", world, fit) >= least, f"{name}, seed {seed}")
    for first, second in itertools.combinations(range(seeds), 2):
        agreed = raysae.stability(fits[first].sae, fits[second].sae, validation)
        asked = "" if stable is None else f" (at least {stable:g})"
        print(f"  seeds {first} and {second} agree: stability {agreed:.3f}{asked}")
        check(stable is None or agreed >= stable, f"{name}, stability")


def white_noise() -> None:
    """Train TopK on noise: it must match a world's atoms no better than random rows do."""
    print("\nwhite noise, 64 dims, 1,000 steps: as good as chance, within 0.05")
    noise = torch.randn(ROWS + 8192, 64, generator=torch.Generator().manual_seed(1))
    fit = trained({"variant": "topk", "d_sae": 128, "k": 4}, noise[:ROWS], noise[ROWS:], 1000, 0)
    found = report("seed 0", SIMPLE, fit)
    chance, _ = mmcs(
        SIMPLE.truth(), torch.randn(128, 64, generator=torch.Generator().manual_seed(2))
    )
    print(f"  random rows: mmcs {chance:.4f}")
    check(abs(found - chance) < 0.05, "white noise")


def other_variants() -> None:
    """Print a row for each other variant in the simple world."""
    print("\nthe other variants, 64 dims, 128 atoms, p 0.03, 1,000 steps")
    train, validation = SIMPLE.rows(ROWS), SIMPLE.rows(8192, part=1)
    for variant, settings in VARIANTS.items():
        config = {"variant": variant, "d_sae": 128, **settings}
        said = ", ".join(f"{key} {value:g}" for key, value in settings.items())
        report(f"{variant}, {said}", SIMPLE, trained(config, train, validation, 1000, 0))


def hierarchy(seeds: int) -> None:
    """Compare how Matryoshka and BatchTopK find parent atoms when k is below the active atoms."""
    world = HierarchicalWorld()
    print(
        f"\n{world.parents} parents of {world.children} children in {world.d_in} dims, 3.5 atoms on, "
        "k 2, 1,500 steps: matryoshka above batch_topk"
    )
    train, validation = world.draw(ROWS)[0], world.draw(8192, part=1)
    found: dict[str, list[tuple[float, float]]] = {"batch_topk": [], "matryoshka": []}
    for seed, variant in itertools.product(range(seeds), found):
        config = {"variant": variant, "d_sae": 80, "k": 2}
        fit = trained(config, train, validation[0], 1500, seed)
        _, recovered = mmcs(world.truth()[:, 0], fit.sae.W_dec)
        told = parents_told(fit, *validation)
        found[variant].append((recovered, told))
        print(
            f"  {variant}, seed {seed}: parents recovered {recovered:.0%}, told apart by one latent "
            f"(F1) {told:.3f}; EV {fit.metrics['explained_variance']:.4f}"
        )
    for seed, (batch, nested) in enumerate(zip(*found.values(), strict=True)):
        check(nested[0] > batch[0] and nested[1] > batch[1], f"hierarchy, seed {seed}")


@torch.no_grad()
def parents_told(fit: Fit, rows_ND: Tensor, parents_NP: Tensor) -> float:
    """Mean over parents of the best F1 of one latent's firing as a classifier of the parent.

    ``rows_ND [rows, d_in]``, ``parents_NP [rows, parents]``: which parents are active.
    """
    fires_NF, on_NP = (fit.sae.encode(rows_ND) > 0).double(), parents_NP.double()
    both_PF = on_NP.T @ fires_NF
    either_PF = on_NP.sum(dim=0)[:, None] + fires_NF.sum(dim=0)
    return float((2 * both_PF / either_PF).amax(dim=1).mean())


def shrinkage(seeds: int) -> None:
    """Compare the shrinkage of ReLU-L1 and Gated: L1 shrinks features, a gate should not."""
    print("\nshrinkage at an L0 of about 5 (1 would be none): gated nearer to 1 than relu_l1")
    train, validation = SIMPLE.rows(ROWS), SIMPLE.rows(8192, part=1)
    for seed in range(seeds):
        biases = {}
        for variant in ("relu_l1", "gated"):
            config = {"variant": variant, "d_sae": 128, "l1_coefficient": 3.0}
            fit = trained(config, train, validation, 1000, seed)
            biases[variant] = relative_bias(fit, validation)
            print(f"  {variant}, seed {seed}: {biases[variant]:.3f}; L0 {fit.metrics['l0']:.2f}")
        shrunk = biases["relu_l1"] < 0.97 and abs(1 - biases["gated"]) < 1 - biases["relu_l1"]
        check(shrunk, f"shrinkage, seed {seed}")


@torch.no_grad()
def relative_bias(fit: Fit, rows_ND: Tensor) -> float:
    """E‖x̂‖² / E[x̂·x], both centred on b_dec: below 1 the reconstruction is too small
    (Rajamanoharan et al. 2024, "Improving dictionary learning with gated sparse autoencoders",
    equation 10)."""
    reconstruction_ND = fit.sae(rows_ND).reconstruction - fit.sae.b_dec
    centred_ND = rows_ND - fit.sae.b_dec
    return float(reconstruction_ND.square().sum() / (reconstruction_ND * centred_ND).sum())


def trained(
    config: dict[str, Any], train: Tensor, validation: Tensor, steps: int, seed: int
) -> Fit:
    """Train one SAE for ``steps`` steps."""
    training = {"tokens": steps * BATCH, "batch_size": BATCH, "lr": LR, "evaluations": 1}
    return raysae.fit(config, train, training, validation=validation, seed=seed, progress=False)


def report(name: str, world: SuperpositionWorld, fit: Fit) -> float:
    """Print how well the decoder matches the world's atoms; returns the mmcs."""
    similarity, recovered = mmcs(world.truth(), fit.sae.W_dec)
    m = fit.metrics
    print(
        f"  {name}: mmcs {similarity:.4f}, recovered {recovered:.1%}, EV "
        f"{m['explained_variance']:.4f}, L0 {m['l0']:.2f}, dead {m['dead_fraction_validation']:.1%}",
        flush=True,
    )
    return similarity


def check(reached: bool, what: str) -> None:
    """Add ``what`` to ``short`` unless ``reached``."""
    if not reached:
        short.append(what)


if __name__ == "__main__":
    sys.exit(main())
