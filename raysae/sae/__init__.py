"""What is trained: SAE variants and their checkpoints. Torch only."""

from raysae.sae.base import SAE, SAEOutput
from raysae.sae.checkpoint import load_sae, save_sae
from raysae.sae.config import SAEConfig
from raysae.sae.variants import VARIANTS, build_sae

__all__ = ["SAE", "VARIANTS", "SAEConfig", "SAEOutput", "build_sae", "load_sae", "save_sae"]
