"""What the controls say of white noise, of random models, and of data with features: a verdict for each.

    python scripts/controls_check.py [--worlds 10] [--part noise|random|planted|model] [--rows 12000]

Worlds are drawn from ranges: d_in 32 to 96, d_sae 1 to 4 times d_in, K 2 to 16. Parts:

- noise: independent Gaussian rows, with equal spread or with that of a random covariance;
- random: the pocket model's residual stream with its weights shuffled by another seed each time, beside
  the control of the same kind (weights shuffled once more);
- planted: sums of random atoms, of which 3 to 6 are active;
- model: the pocket model as it was trained, at each of its layers.

Each is trained with two seeds on one core, and compared with the cheap controls (random and model: with a
shuffled model, too). The exit code is 1 when noise or random models are called anything but no better
than the controls in over a tenth of the worlds, or planted worlds and the model are called that.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from raysae.activations.synthetic import SuperpositionWorld
from raysae.config.search import CHEAP
from raysae.pocket.problems import make_problem
from raysae.sae import sae_config
from raysae.sweep.controls.fits import Shape
from raysae.sweep.controls.making import with_share
from raysae.sweep.controls.verdict import NOT_BETTER, Chosen, verdict
from raysae.sweep.controls.worker import Makers
from raysae.training import TrainingConfig
from raysae.training.rows import Rows, Splits
from raysae.transformer.loading import load_model, load_tokenizer
from raysae.transformer.model_spec import POCKET, ModelSpec

World = tuple[str, Tensor, Tensor | None]
"""A name, its rows ``[rows, d_in]``, and those of the same model with shuffled weights."""


def noise(worlds: int, rows: int) -> Iterator[World]:
    """Gaussian rows of equal spread, and of a random covariance in every second world."""
    for world in range(worlds):
        random = np.random.default_rng((1, world))
        d_in = int(random.integers(32, 97))
        x = torch.from_numpy(random.standard_normal((rows, d_in))).float()
        if world % 2:
            x = x * torch.from_numpy(random.uniform(0.2, 2.0, d_in)).float()
        yield f"noise {world}", x, None


def planted(worlds: int, rows: int) -> Iterator[World]:
    """Sums of random atoms."""
    for world in range(worlds):
        random = np.random.default_rng((2, world))
        d_in = int(random.integers(32, 97))
        atoms = int(d_in * random.uniform(1.5, 3))
        p = float(random.uniform(3, 6)) / atoms
        yield f"planted {world}", SuperpositionWorld(d_in, atoms, p, world).rows(rows), None


def activations(layer: int, rows: int, shuffled: int | None) -> Tensor:
    """The residual stream after ``layer`` at the last six tokens of problems."""
    model = load_model(ModelSpec(POCKET, shuffled=shuffled)).eval()
    tokenizer, found = load_tokenizer(ModelSpec(POCKET)), []
    with torch.no_grad():
        for number in range(rows // 6):
            tokens = torch.tensor([tokenizer(make_problem(3, number).prompt)["input_ids"]])
            found.append(model(tokens, output_hidden_states=True).hidden_states[layer + 1][0, -6:])
    return torch.cat(found).float()


def random_models(worlds: int, rows: int) -> Iterator[World]:
    """Shuffled pocket models, each with another shuffle of the same weights."""
    for world in range(worlds):
        layer = world % 4
        model, control = (
            activations(layer, rows, 2 * world),
            activations(layer, rows, 2 * world + 1),
        )
        yield f"random {world}, layer {layer}", model, control


def trained_model(worlds: int, rows: int) -> Iterator[World]:
    """The pocket model at each of its layers."""
    for layer in range(min(worlds, 4)):
        yield f"pocket, layer {layer}", activations(layer, rows, None), activations(layer, rows, 0)


def held_apart(x: Tensor) -> Splits:
    """Nine tenths of the rows to train on, the others held out."""
    cut = len(x) * 9 // 10
    return Splits(Rows(x[:cut]), Rows(x[cut:]))


def judged(world: World, number: int) -> str | None:
    """Train, compare and print one world; returns the verdict."""
    name, x, shuffled = world
    random = np.random.default_rng((3, number))
    d_sae = int(x.shape[1] * 2 ** random.uniform(0, 2))
    config = sae_config({"d_sae": d_sae, "k": int(2 ** random.uniform(1, 4))})
    training = TrainingConfig(epochs=4, batch_size=256, lr=3e-3)
    shape, rows = Shape(config, training, (0, 1)), held_apart(x)
    makers = Makers(shape, rows, "cpu", lambda: None)
    own = makers.as_it_is()
    controls = {one: makers.record(one) for one in CHEAP}
    if shuffled is not None:
        of_shuffled = Makers(shape, held_apart(shuffled), "cpu", lambda: None)
        controls["shuffled_model"] = of_shuffled.record("shuffled_model")
    reached, k = own["explained_variance"], config.k
    controls = {one: with_share(record, reached, k) for one, record in controls.items()}
    told = verdict(Chosen(reached, own["by_seed"], own["stability"]), controls, k)
    figures = [reached, *(one["explained_variance"] for one in controls.values())]
    line = "".join(f"{one:>9.4f}" for one in figures) + " " * 9 * (5 - len(figures))
    agree = f"{own['stability']:.2f}/{controls['gaussian']['stability']:.2f}"
    print(
        f"{name:<22}{x.shape[1]:>5}{d_sae:>6}{k:>4}{line}  {agree}  {told['verdict']}", flush=True
    )
    return told["verdict"]


PARTS = {"noise": noise, "random": random_models, "planted": planted, "model": trained_model}


def main() -> int:
    """Run the parts; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--worlds", type=int, default=10)
    parser.add_argument("--rows", type=int, default=12_000)
    parser.add_argument("--part", choices=[*PARTS, "all"], default="all")
    args = parser.parse_args()
    torch.set_num_threads(1)
    short = []
    print(
        f"{'world':<22}{'d_in':>5}{'d_sae':>6}{'K':>4}{'SAE':>9}{'random D':>9}{'Gauss':>9}"
        f"{'PCA-K':>9}{'shuffled':>9}  agreement, SAE/Gauss"
    )
    for part in PARTS if args.part == "all" else [args.part]:
        worlds = enumerate(PARTS[part](args.worlds, args.rows))
        found = Counter(judged(world, number) for number, world in worlds)
        print(f"{part}: " + ", ".join(f"{count} {name}" for name, count in found.items()))
        empty = part in ("noise", "random")
        wrong = sum(count for name, count in found.items() if (name == NOT_BETTER) != empty)
        if wrong > sum(found.values()) / 10:
            short.append(part)
    print("short of what is asked: " + ", ".join(short) if short else "all as they are")
    return 1 if short else 0


if __name__ == "__main__":
    sys.exit(main())
