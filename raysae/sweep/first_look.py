"""A cheap first look over K: one HierarchicalTopK SAE for each d_sae and seed, read at every K.

The trials that it gives are those of a table, so every rule can choose among them
(``raysae.sweep.selection.rules.select``); dead latents are those that the validation rows lack. Their
figures are of one dictionary: explained variance hardly differs from that of an SAE trained at that K
alone, but agreement of seeds and the decoder's cosine change with K only as far as the latents in use
do. ``scripts/samplers.py`` measures what it is worth.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from statistics import fmean, stdev
from typing import Any

import torch
from torch import Tensor

from raysae.records.rows import TrialRow
from raysae.sae import SAE
from raysae.sae.config import HierarchicalTopKConfig
from raysae.sae.dictionary import agreement
from raysae.sae.hierarchical_topk import HierarchicalTopKSAE
from raysae.sae.indicators import chance_agreement, mean_abs_cosine, nth_projection
from raysae.sae.metrics import evaluate, mean_of_rows
from raysae.training import TrainingConfig
from raysae.training.ensemble import Ensemble, Member, StatisticsCache
from raysae.training.rows import IndexedRows, RowSource

SPREADS = ("explained_variance", "decoder_cosine_mean_abs", "decoder_projection")


def first_look(
    train: RowSource, validation: IndexedRows, training: TrainingConfig, sizes: Iterable[int],
    ks: Iterable[int], seeds: Sequence[int] = (0, 1),
) -> list[TrialRow]:  # fmt: skip
    """A trial for each d_sae of ``sizes`` and each of ``ks`` that is no larger, from one training for
    each d_sae and seed. ``seconds`` and ``tokens_trained`` are those of the training, over its trials.

    Raises what a training raises.
    """
    cache, found = StatisticsCache(), list[TrialRow]()
    for d_sae in sorted(set(sizes)):
        levels = sorted({k for k in ks if k <= d_sae})
        config = HierarchicalTopKConfig(
            d_sae=d_sae, k=levels[-1], levels=tuple(map(float, levels[:-1]))
        )
        members = [Member(config, training, train, validation, seed) for seed in seeds]
        for _ in Ensemble(members, statistics=cache).rounds():
            pass
        for member in members:
            if member.failure is not None:
                raise member.failure
        found += _read_at(levels, members, validation, len(found))
    return found


def _read_at(
    levels: Sequence[int], members: Sequence[Member], validation: IndexedRows, first: int
) -> Iterator[TrialRow]:
    saes = [member.trainer.sae() for member in members]
    cost = {
        "seconds": sum(member.seconds for member in members) / len(levels),
        "tokens_trained": sum(member.trainer.tokens for member in members) / len(levels),
    }
    mean_D = mean_of_rows(validation.batches())
    for number, k in enumerate(levels, start=first):
        plain = []
        for sae in saes:
            assert isinstance(sae, HierarchicalTopKSAE)
            plain.append(sae.at_k(k))
        settings = {"sae.variant": "topk", "sae.d_sae": plain[0].config.d_sae, "sae.k": k}
        yield TrialRow(
            number, "done", "", settings, {**_figures(plain, validation, mean_D), **cost}
        )


def _figures(saes: Sequence[SAE], validation: IndexedRows, mean_D: Tensor) -> dict[str, Any]:
    """The figures of the seeds' SAEs, as the trials of a search have them."""
    records, decoders = [], []
    for sae in saes:
        record, live_FD = _of_one(sae, validation, mean_D)
        records.append(record)
        decoders.append(live_FD)
    found: dict[str, Any] = {name: fmean(one[name] for one in records) for name in records[0]}
    if len(saes) == 1:
        return found
    found |= {f"{name}_seeds": stdev(one[name] for one in records) for name in SPREADS}
    chance = chance_agreement(len(decoders[0]), len(decoders[1]), saes[0].d_in)
    return {**found, **agreement([decoders]), "stability_chance": chance}


@torch.no_grad()
def _of_one(sae: SAE, validation: IndexedRows, mean_D: Tensor) -> tuple[dict[str, float], Tensor]:
    """An SAE's figures on the validation rows, and the decoder rows of the latents that fire there."""
    fires_F = torch.zeros(sae.config.d_sae, dtype=torch.bool)
    square = count = 0.0

    def model(x_BD: Tensor) -> tuple[Tensor, Tensor]:
        nonlocal square, count
        reconstruction_BD, features_BF = sae.reconstruct(x_BD)
        fires_F.logical_or_((features_BF > 0).any(dim=0))
        square += float((x_BD - mean_D).square().sum())
        count += x_BD.numel()
        return reconstruction_BD, features_BF

    sums = evaluate(model, (x_BD.float() for x_BD in validation.batches()), mean_D)
    live_FD, scale = sae.W_dec[fires_F], math.sqrt(count / square)
    centred = ((x_BD.float() - mean_D.float()) * scale for x_BD in validation.batches())
    metrics = sums.metrics()
    dead = 1 - len(live_FD) / len(fires_F)
    return {
        "explained_variance": metrics["explained_variance"], "l0": metrics["l0"],
        "dead_fraction": dead, "dead_fraction_validation": dead,
        "dead_window_tokens": len(validation),
        "decoder_cosine_mean_abs": mean_abs_cosine(live_FD),
        "decoder_projection": nth_projection(live_FD, centred).mean,
    }, live_FD  # fmt: skip
