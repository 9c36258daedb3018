"""A transformer with shuffled weights, as a control: the same texts and shapes, and nothing learned."""

from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from typing import Any

import torch

from raysae.activations.writer import SiteRows
from raysae.analysis.site_latents import SiteLatents, encoded
from raysae.config.source import SourceConfig
from raysae.sae import SAE
from raysae.sites import Site
from raysae.transformer.sequence import TokenSequence

TOKENS_TOGETHER = 16_384


@torch.no_grad()
def shuffled(model: Any, seed: int) -> Any:
    """A copy of the model in which the values of each weight tensor are permuted among themselves."""
    copy = deepcopy(model)
    generator = torch.Generator().manual_seed(seed)
    for _, weight in sorted(copy.named_parameters()):
        order = torch.randperm(weight.numel(), generator=generator).to(weight.device)
        weight.copy_(weight.reshape(-1)[order].reshape(weight.shape))
    return copy


def latents_of_model(
    model: Any, source: SourceConfig, site: Site, sae: SAE, sequences: Sequence[TokenSequence],
    alive: Callable[[], None],
) -> SiteLatents:  # fmt: skip
    """The latents of a site's rows where ``model`` reads the sequences; rows are not rounded."""
    from raysae.transformer.capture import Capturer

    capturer = Capturer(model, hookpoint=source.hookpoint, layers=[site.layer], dtype="float32")
    reader = capturer.only([site.layer], [site.hookpoint])
    parts = []
    for some in _together(sequences):
        rows: SiteRows = reader.rows(some, [site.position], list(source.used_patterns))[site]
        parts.append(encoded(sae, rows))
        alive()
    return SiteLatents.joined(parts)


def _together(sequences: Sequence[TokenSequence]) -> Iterator[list[TokenSequence]]:
    some: list[TokenSequence] = []
    for sequence in sequences:
        some.append(sequence)
        if sum(map(len, some)) >= TOKENS_TOGETHER:
            yield some
            some = []
    if some:
        yield some
