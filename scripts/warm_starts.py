"""Is an SAE better or cheaper when it starts from that of the layer before? A table of both.

    python scripts/warm_starts.py STORE [--position all] [--tokens 400000] [--d-sae 512] [--k 16]

Every layer of the store but the first is trained from scratch and from the SAE of the layer before it
(its encoder, decoder and encoder bias, as saved and loaded again; the decoder's bias is this layer's),
each on a quarter, a half and all of the tokens with a learning rate schedule of that length. The SAEs of
the layers before are those trained from scratch on all tokens. A last column gives the tokens at which
the training on all of them first has the explained variance with which the one from scratch ends.
"""

import argparse
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

import raysae
from raysae.sae import SAE, save_sae
from raysae.sae.config import TopKConfig
from raysae.training import Splits, Trainer, TrainingConfig

FRACTIONS = (0.25, 0.5, 1.0)


@dataclass(frozen=True)
class Outcome:
    """The end of a training, and its explained variance by tokens."""

    sae: SAE
    explained_variance: float
    dead: float
    curve: list[tuple[int, float]]

    def tokens_to(self, wanted: float) -> int | None:
        """The tokens at which the explained variance first was ``wanted``; None when it never was."""
        return next((tokens for tokens, value in self.curve if value >= wanted), None)


def train(
    config: TopKConfig, training: TrainingConfig, rows: Splits, seed: int, start: SAE | None
) -> Outcome:
    """Train on a site's rows, from scratch or from the weights of ``start``."""
    trainer = Trainer(config, training, rows.train, rows.validation, seed=seed)
    if start is not None:
        copy_weights(start, trainer)
    curve = [(record["tokens"], record["explained_variance"]) for record in trainer.rounds()]
    metrics = trainer.metrics()
    return Outcome(trainer.sae(), metrics["explained_variance"], metrics["dead_fraction"], curve)


@torch.no_grad()
def copy_weights(start: SAE, trainer: Trainer) -> None:
    """Let ``trainer`` begin with another site's SAE, in the units in which both are trained."""
    trainer.model.W_enc.copy_(start.W_enc)
    trainer.model.W_dec.copy_(start.W_dec)
    trainer.model.b_enc.copy_(start.b_enc * start.metadata["training"]["input_scale"])


def compared(arguments: argparse.Namespace) -> Iterator[tuple[int, int, str, float, Outcome]]:
    """Layer, seed, how it began, fraction of the tokens, and the outcome of every training."""
    store = raysae.open_store(arguments.store)
    config = TopKConfig(d_sae=arguments.d_sae, k=arguments.k)
    for seed in range(arguments.seeds):
        before: SAE | None = None
        for layer in store.layers[: arguments.layers]:
            rows = store.site(raysae.Site(layer, arguments.position))
            for fraction in FRACTIONS:
                training = TrainingConfig(
                    tokens=int(arguments.tokens * fraction), batch_size=256, lr=arguments.lr,
                    epochs=1000, evaluations=20,
                )  # fmt: skip
                scratch = train(config, training, rows, seed, None)
                yield layer, seed, "scratch", fraction, scratch
                if before is not None:
                    warm = train(config, training, rows, seed, before)
                    yield layer, seed, "neighbour", fraction, warm
            before = saved_and_loaded(scratch.sae)


def saved_and_loaded(sae: SAE) -> SAE:
    """The SAE as a run commits it."""
    with tempfile.TemporaryDirectory() as folder:
        save_sae(sae, Path(folder) / "sae")
        return raysae.load_sae(Path(folder) / "sae")


def main() -> int:
    """Train, print the table; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("store")
    parser.add_argument("--position", default="all")
    parser.add_argument("--tokens", type=int, default=400_000)
    parser.add_argument("--d-sae", type=int, default=512)
    parser.add_argument("--k", type=int, default=16)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--layers", type=int, help="only so many, from the first")
    parser.add_argument("--seeds", type=int, default=2)
    arguments = parser.parse_args()
    heads = f"{'layer':>5} {'seed':>4} {'begin':>10} {'tokens':>9} {'EV':>8} {'dead':>7}"
    print(f"{heads} {'EV of scratch at':>17}")
    ends: dict[tuple[int, int], float] = {}
    for layer, seed, begin, fraction, one in compared(arguments):
        if begin == "scratch" and fraction == 1.0:
            ends[layer, seed] = one.explained_variance
        reached = one.tokens_to(ends[layer, seed]) if fraction == 1.0 else None
        shown = "" if fraction < 1.0 else "never" if reached is None else f"{reached:,}"
        tokens = f"{int(arguments.tokens * fraction):,}"
        print(
            f"{layer:>5} {seed:>4} {begin:>10} {tokens:>9} {one.explained_variance:>8.4f} "
            f"{one.dead:>7.2%} {shown:>17}", flush=True,
        )  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
