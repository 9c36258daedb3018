"""The registry of variants: a new one needs a file, a line here, its settings and a test."""

import torch

from raysae.sae.base import SAE
from raysae.sae.batch_topk import BatchTopKSAE
from raysae.sae.config import SAEConfig
from raysae.sae.gated import GatedSAE
from raysae.sae.hierarchical_topk import HierarchicalTopKSAE
from raysae.sae.jumprelu import JumpReLUSAE
from raysae.sae.matryoshka import MatryoshkaSAE
from raysae.sae.relu_l1 import ReLUL1SAE
from raysae.sae.topk import TopKSAE

VARIANTS: dict[str, type[SAE]] = {
    "topk": TopKSAE,
    "batch_topk": BatchTopKSAE,
    "matryoshka": MatryoshkaSAE,
    "hierarchical_topk": HierarchicalTopKSAE,
    "jumprelu": JumpReLUSAE,
    "gated": GatedSAE,
    "relu_l1": ReLUL1SAE,
}


def build_sae(config: SAEConfig, d_in: int, seed: int = 0) -> SAE:
    """A new SAE on the CPU, initialised by ``seed``; equal arguments give equal weights."""
    generator = torch.Generator().manual_seed(seed)
    return VARIANTS[config.variant](config, d_in, generator)
