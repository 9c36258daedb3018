"""Does the law of scaling foretell twice the largest dictionary, or say that it cannot?

    python scripts/scaling_check.py [--part worlds|pocket|stories|all] [--worlds 5] [--rows N] ...

A grid of d_sae and K is trained on planted worlds (sums of random atoms), on the pocket model's residual
stream and on that of stories260K over GSM8K (``../shared``). The law is fitted to all sizes but the
largest, which is twice the next, by raysae.sweep.selection.scaling as in a run: it holds back its own
largest d_sae, and refuses in words where that is not foretold. What it foretells is then compared with
what was found. The exit code is 1 when a law that was not refused is more than 10% off on average in
over a fifth of the cases.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

import raysae
from raysae.activations.synthetic import SuperpositionWorld
from raysae.pocket.problems import make_problem
from raysae.records.rows import TrialRow
from raysae.sweep.selection.scaling import MOST_ERROR, scaling_of
from raysae.transformer.loading import load_model, load_tokenizer
from raysae.transformer.model_spec import POCKET, ModelSpec

SHARED = Path(__file__).parents[2] / "shared"
SIZES, KS = (32, 64, 128, 256, 512), (2, 4, 8, 16)
WORLDS = ((48, 128, 0.03), (64, 256, 0.02), (96, 512, 0.01), (64, 2048, 0.003), (32, 1024, 0.004))
"""d_in, atoms, and how often each is there; in the last two there are more atoms than latents."""


def worlds(count: int, rows: int) -> Iterator[tuple[str, Tensor]]:
    """Planted worlds, by name."""
    for number, (d_in, atoms, p) in enumerate(WORLDS[:count]):
        world = SuperpositionWorld(d_in, atoms, p, seed=number)
        yield f"world of {atoms} atoms in {d_in} dimensions", world.rows(rows)


def activations(spec: ModelSpec, layer: int, texts: list[str], rows: int) -> Tensor:
    """The residual stream after ``layer`` at every token but the first of the texts."""
    model, tokenizer = load_model(spec).eval(), load_tokenizer(spec)
    found: list[Tensor] = []
    with torch.no_grad():
        for text in texts:
            tokens = torch.tensor([tokenizer(text)["input_ids"][:128]])
            found.append(model(tokens, output_hidden_states=True).hidden_states[layer + 1][0, 1:])
            if sum(map(len, found)) >= rows:
                break
    return torch.cat(found)[:rows].float()


def pocket(rows: int) -> Iterator[tuple[str, Tensor]]:
    """The pocket model's residual stream."""
    texts = [make_problem(5, number).prompt for number in range(rows // 20)]
    yield "pocket, layer 2", activations(ModelSpec(POCKET), 2, texts, rows)


def stories(rows: int) -> Iterator[tuple[str, Tensor]]:
    """The residual stream of stories260K over GSM8K."""
    model, file = SHARED / "models" / "stories260K", SHARED / "data" / "gsm8k" / "train.jsonl"
    if not model.is_dir():
        print(f"stories260K: not found in {SHARED}")
        return
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    texts = [f"{line['question']} {line['answer']}" for line in lines]
    yield "stories260K, layer 2", activations(ModelSpec(str(model)), 2, texts, rows)


def trained(x: Tensor, epochs: int) -> list[TrialRow]:
    """The grid, trained on nine tenths of the rows; on the others its FVU is measured."""
    cut, grid = len(x) * 9 // 10, [(size, k) for size in SIZES for k in KS]
    training = {"epochs": epochs, "batch_size": 256, "lr": 3e-3, "evaluations": 1}
    configs = [{"d_sae": size, "k": k} for size, k in grid]
    fits = raysae.fit_many(configs, x[:cut], training, validation=x[cut:], progress=False)
    return [
        TrialRow(
            number, "done", "", {"sae.variant": "topk", "sae.d_sae": size, "sae.k": k}, fit.metrics
        )
        for number, ((size, k), fit) in enumerate(zip(grid, fits, strict=True))
    ]


def checked(name: str, x: Tensor, epochs: int) -> float | None:
    """Train, foretell the largest size and print it beside what was found; the mean error, None where
    the law was refused."""
    started, rows = time.process_time(), trained(x, epochs)
    known = [row for row in rows if row.d_sae < SIZES[-1]]
    told = scaling_of(known)
    held = f", held back {told['check']['error']:.1%} off" if "check" in told else ""
    print(f"\n{name}: {len(x):,} rows, {time.process_time() - started:.0f} s of CPU{held}")
    if told["refused"] is not None:
        print(f"  no law: {told['refused']}", flush=True)
        return None
    errors = []
    print("     K    found   foretold             interval    error")
    for row in rows[-len(KS) :]:
        pairs = {(one["d_sae"], one["k"]): one for one in told["predictions"]}
        one, found = pairs[row.d_sae, row.k], 1 - row.explained_variance
        low, high = one["interval"]
        errors.append(abs(one["fvu"] / found - 1))
        print(
            f"{row.k:>6} {found:8.4f} {one['fvu']:10.4f} {low:12.4f} {high:8.4f} {errors[-1]:8.1%}"
        )
    mean = sum(errors) / len(errors)
    print(f"  d_sae {SIZES[-1]} foretold with a mean error of {mean:.1%}", flush=True)
    return mean


def main() -> int:
    """Run the parts; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--part", choices=["worlds", "pocket", "stories", "all"], default="all")
    parser.add_argument("--worlds", type=int, default=5)
    parser.add_argument("--rows", type=int, default=40_000)
    parser.add_argument("--epochs", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(1)
    parts = {
        "worlds": worlds(args.worlds, args.rows), "pocket": pocket(args.rows),
        "stories": stories(args.rows),
    }  # fmt: skip
    chosen = list(parts) if args.part == "all" else [args.part]
    errors = [checked(*one, args.epochs) for part in chosen for one in parts[part]]
    told = [error for error in errors if error is not None]
    right = sum(error <= MOST_ERROR for error in told)
    print(
        f"\n{len(errors)} cases: {right} foretold within {MOST_ERROR:.0%}, {len(told) - right} not, "
        f"{len(errors) - len(told)} refused"
    )
    return 1 if len(told) - right > len(errors) / 5 else 0


if __name__ == "__main__":
    sys.exit(main())
