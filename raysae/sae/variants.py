"""The registry of variants: a new one is one file, one line here and one test."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import torch

from raysae.sae.base import SAE
from raysae.sae.batch_topk import BatchTopKSAE
from raysae.sae.config import SAEConfig
from raysae.sae.gated import GatedSAE
from raysae.sae.jumprelu import JumpReLUSAE
from raysae.sae.matryoshka import MatryoshkaSAE
from raysae.sae.relu_l1 import ReLUL1SAE
from raysae.sae.topk import TopKSAE

VARIANTS: dict[str, type[SAE]] = {
    "topk": TopKSAE,
    "batch_topk": BatchTopKSAE,
    "matryoshka": MatryoshkaSAE,
    "jumprelu": JumpReLUSAE,
    "gated": GatedSAE,
    "relu_l1": ReLUL1SAE,
}
DEFAULT_VARIANT = "topk"


def sae_config(settings: SAEConfig | Mapping[str, Any]) -> SAEConfig:
    """The config of the variant that ``settings`` names (TopK without a name).

    Raises ValueError on an unknown variant, a key that the variant does not have, or a value that no
    SAE can have.
    """
    if isinstance(settings, SAEConfig):
        return settings
    variant = settings.get("variant", DEFAULT_VARIANT)
    if variant not in VARIANTS:
        raise ValueError(f"variant is {variant!r}; known are {', '.join(VARIANTS)}")
    config_class = VARIANTS[variant].Config
    known = [field.name for field in fields(config_class)]
    for key in settings:
        if key not in known:
            raise ValueError(f"{variant} has no setting {key!r}; it has {', '.join(known)}")
    return config_class(**settings)


def build_sae(config: SAEConfig, d_in: int, seed: int = 0) -> SAE:
    """A freshly initialised SAE on the CPU, a function of its arguments alone."""
    generator = torch.Generator().manual_seed(seed)
    return VARIANTS[config.variant](config, d_in, generator)
