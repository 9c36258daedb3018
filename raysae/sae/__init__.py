"""Sparse autoencoders: SAE variants, their checkpoints and other libraries' formats. Torch only."""

from typing import TYPE_CHECKING

from raysae.lazy import loader

if TYPE_CHECKING:
    from raysae.sae.base import SAE, SAEOutput
    from raysae.sae.checkpoint import save_sae
    from raysae.sae.config import SAEConfig, sae_config
    from raysae.sae.dictionary import stability
    from raysae.sae.interchange import export_sae, load_sae
    from raysae.sae.variants import VARIANTS, build_sae

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

__getattr__ = loader(
    __name__,
    {
        "SAE": "raysae.sae.base",
        "SAEOutput": "raysae.sae.base",
        "save_sae": "raysae.sae.checkpoint",
        "SAEConfig": "raysae.sae.config",
        "sae_config": "raysae.sae.config",
        "stability": "raysae.sae.dictionary",
        "export_sae": "raysae.sae.interchange",
        "load_sae": "raysae.sae.interchange",
        "VARIANTS": "raysae.sae.variants",
        "build_sae": "raysae.sae.variants",
    },
)
