"""The registry of variants: a new one is one file, one line here and one test."""

import torch

from raysae.sae.base import SAE
from raysae.sae.config import SAEConfig
from raysae.sae.topk import TopKSAE

VARIANTS: dict[str, type[SAE]] = {"topk": TopKSAE}


def build_sae(config: SAEConfig, d_in: int, seed: int = 0) -> SAE:
    """A freshly initialised SAE on the CPU, a function of its arguments alone."""
    generator = torch.Generator().manual_seed(seed)
    return VARIANTS[config.variant](config, d_in, generator)
