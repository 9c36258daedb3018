"""What is trained: SAE variants, their checkpoints and other libraries' formats. Torch only."""

from raysae.sae.base import SAE, SAEOutput
from raysae.sae.checkpoint import save_sae
from raysae.sae.config import SAEConfig
from raysae.sae.dictionary import stability
from raysae.sae.interchange import export_sae, load_sae
from raysae.sae.variants import VARIANTS, build_sae, sae_config

__all__ = [
    "SAE",
    "VARIANTS",
    "SAEConfig",
    "SAEOutput",
    "build_sae",
    "export_sae",
    "load_sae",
    "sae_config",
    "save_sae",
    "stability",
]
