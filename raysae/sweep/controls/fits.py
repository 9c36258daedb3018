"""The training of a control, and its figures; how far a figure may be off by the rows it is measured on.

Shapes: B batch, D d_in.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import chain, pairwise
from typing import Any

from torch import Tensor

from raysae.metrics import mean, merged
from raysae.sae import SAE, SAEConfig
from raysae.sae.dictionary import agreement
from raysae.sae.metrics import mean_of_rows
from raysae.training import TrainingConfig
from raysae.training.ensemble import Ensemble, Member
from raysae.training.rows import IndexedRows, RowSource

MOST_TOKENS = 20_000_000
"""A control is trained on the tokens of the chosen trial, up to so many."""
SEEDS = 2
"""Of a trial with several seeds a control has up to so many, enough to see how far they agree."""
PARTS = 32
"""Parts of the held-out rows, by which the error of a figure is measured."""
AT_ONCE = 2**20
"""The most features in memory at a time."""
KEPT = ("explained_variance", "l0", "dead_fraction")
"""The metrics that a control's record has."""

Record = dict[str, Any]


@dataclass(frozen=True)
class Shape:
    """What controls are trained as: the chosen trial's settings and seeds."""

    sae: SAEConfig
    training: TrainingConfig
    seeds: tuple[int, ...]

    def shortened(self, rows: int) -> TrainingConfig:
        """The training on ``rows`` training rows: evaluated at its end alone, and no longer than
        ``MOST_TOKENS``."""
        once = replace(self.training, evaluations=1)
        long = self.training.training_tokens(rows) > MOST_TOKENS
        return replace(once, tokens=MOST_TOKENS) if long else once


def fitted(
    shape: Shape,
    train: RowSource,
    held_out: IndexedRows,
    device: str,
    alive: Callable[[], None],
    *,
    frozen: bool = False,
    pack: bool | None = None,
) -> Record:
    """Train ``shape`` on ``train`` for each of its first seeds; returns its figures on ``held_out``.

    A ``frozen`` one keeps the dictionary that it was drawn with, and has one seed. With ``pack`` (None:
    on GPUs only) SAEs are trained in packs. Raises what the training raises.
    """
    started, settings = time.monotonic(), shape.shortened(len(train))
    if frozen:
        settings = replace(settings, frozen="decoder")
    found, decoders, error = [], [], math.nan
    members = [
        Member(shape.sae, settings, train, held_out, seed)
        for seed in shape.seeds[: 1 if frozen else SEEDS]
    ]
    ensemble = Ensemble(members, device, pack=pack, after_batch=lambda _: alive())
    for member in chain.from_iterable(ensemble.groups()):
        if member.failure is not None:
            raise member.failure
        trainer = member.trainer
        trainer.release()
        found.append({name: trainer.metrics()[name] for name in KEPT})
        decoders.append(trainer.live_decoder().cpu())
        error = standard_error(trainer.sae(), held_out) if math.isnan(error) else error
        member.release()  # frees memory for the next
        alive()
    return {
        **merged(found),
        **agreement([decoders]),
        "by_seed": [one["explained_variance"] for one in found],
        "standard_error": error,
        "tokens": settings.training_tokens(len(train)),
        "tokens_of_trial": shape.training.training_tokens(len(train)),
        "rows": len(train),
        "seeds": len(found),
        "seconds": time.monotonic() - started,
    }


def standard_error(sae: SAE, held_out: IndexedRows) -> float:
    """The standard error of the SAE's explained variance on ``held_out``: by leaving out each of up to
    ``PARTS`` parts of the rows in turn (jackknife). NaN for a single row."""
    mean_D = mean_of_rows(held_out.batches())
    parts = min(PARTS, len(held_out))
    edges = [round(part * len(held_out) / parts) for part in range(parts + 1)]
    sums = [_errors(sae, held_out, mean_D, start, stop) for start, stop in pairwise(edges)]
    lost, total = (sum(column) for column in zip(*sums, strict=True))
    without = [
        (lost - l_part) / (total - t_part) if total > t_part else math.nan
        for l_part, t_part in sums
    ]
    centre = sum(without) / parts
    spread = sum((one - centre) ** 2 for one in without)
    return math.sqrt(spread * (parts - 1) / parts) if parts > 1 else math.nan


def _errors(
    sae: SAE, held_out: IndexedRows, mean_D: Tensor, start: int, stop: int
) -> tuple[float, float]:
    """The squared error of rows ``start`` to ``stop``, and their squared distance from the mean."""
    lost = total = 0.0
    step = max(AT_ONCE // sae.config.d_sae, 64)
    for at in range(start, stop, step):
        x_BD = held_out.read(at, min(at + step, stop)).cpu().float()
        reconstruction_BD, _ = sae.reconstruct(x_BD)
        lost += float((x_BD - reconstruction_BD).double().square().sum())
        total += float((x_BD.double() - mean_D.cpu()).square().sum())
    return lost, total


def together(records: Sequence[Record]) -> Record:
    """One record for the sites of a sweep: the mean of their figures."""
    common = set(records[0]).intersection(*records)
    return {name: _middle([one[name] for one in records]) for name in records[0] if name in common}


def _middle(values: Sequence[Any]) -> Any:
    """The mean; of lists that of each place."""
    if isinstance(values[0], list):
        return [mean(column) for column in zip(*values, strict=True)]
    return mean(values)
