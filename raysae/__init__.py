"""raysae: sparse autoencoders for transformers, found by parallel experiment.

Everything public loads when first touched, so that ``import raysae`` costs nothing.
"""

import importlib
from typing import TYPE_CHECKING, Any

from raysae._version import __version__ as __version__
from raysae.lazy import loader

_load = loader(
    __name__,
    {
        "open_store": "raysae.activations",
        "Site": "raysae.activations",
        "Recipe": "raysae.config",
        "load_recipe": "raysae.config",
        "UserError": "raysae.errors",
        "SAE": "raysae.sae",
        "SAEConfig": "raysae.sae",
        "load_sae": "raysae.sae",
        "export_sae": "raysae.sae",
        "stability": "raysae.sae",
        "Atlas": "raysae.atlas.library",
        "open_atlas": "raysae.atlas.library",
        "export_atlas": "raysae.atlas.library",
        "TrainingConfig": "raysae.training",
        "fit": "raysae.training",
        "fit_many": "raysae.training",
    },
)

if TYPE_CHECKING:
    from raysae.activations import Site, open_store
    from raysae.atlas.library import Atlas, export_atlas, open_atlas
    from raysae.config import Recipe, load_recipe
    from raysae.errors import UserError
    from raysae.sae import SAE, SAEConfig, export_sae, load_sae, stability
    from raysae.training import TrainingConfig, fit, fit_many

__all__ = [
    "SAE",
    "Atlas",
    "Recipe",
    "SAEConfig",
    "Site",
    "TrainingConfig",
    "UserError",
    "export_atlas",
    "export_sae",
    "fit",
    "fit_many",
    "load_recipe",
    "load_sae",
    "open_atlas",
    "open_store",
    "stability",
]


def __getattr__(name: str) -> Any:
    if name == "sweep":  # a module that can be called: raysae.sweep(recipe)
        return importlib.import_module("raysae.sweep")
    return _load(name)
