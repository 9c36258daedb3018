"""Does training find a dictionary that is known? Prints a row a seed, and one of white noise.

    python scripts/recovery.py [--seeds 5]

64 dimensions, 128 atoms, p 0.03 (3.84 active a row on average); TopK, d_sae 128, k 4; batch 1024,
1,000 steps, lr 3e-3. The world's random streams are not torch's, so no SAE starts from the truth.
"""

import argparse

import torch

import raysae
from raysae.activations.synthetic import SuperpositionWorld
from raysae.sae.dictionary import mmcs

ROWS, EPOCHS = 102_400, 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{'data':12} {'seed':>4} {'mmcs':>7} {'recovered':>9} {'EV':>7} {'L0':>5} {'dead':>6}")
    for seed in range(args.seeds):
        world = SuperpositionWorld(d_in=64, atoms=128, p=0.03, seed=seed)
        report("planted", seed, world, world.rows(ROWS), world.rows(4096, part=1))
    noise = torch.randn(ROWS + 4096, 64, generator=torch.Generator().manual_seed(1))
    report("white noise", 0, SuperpositionWorld(), noise[:ROWS], noise[ROWS:])


def report(
    name: str, seed: int, world: SuperpositionWorld, train: torch.Tensor, validation: torch.Tensor
) -> None:
    """Train on ``train`` and print a row: how well the world's atoms are found in the decoder."""
    fit = raysae.fit(
        {"variant": "topk", "d_sae": 128, "k": 4},
        train,
        {"epochs": EPOCHS, "batch_size": 1024, "lr": 3e-3},
        validation=validation,
        seed=seed,
    )
    similarity, recovered = mmcs(world.truth(), fit.sae.W_dec)
    m = fit.metrics
    print(
        f"{name:12} {seed:4d} {similarity:7.4f} {recovered:9.1%} {m['explained_variance']:7.4f} "
        f"{m['l0']:5.2f} {m['dead_fraction_validation']:6.1%}",
        flush=True,
    )


if __name__ == "__main__":
    main()
