"""The recipe: frozen pydantic models, one file a part; YAML in, dotted overrides, a resolved copy out."""

from typing import TYPE_CHECKING

from raysae.lazy import loader

if TYPE_CHECKING:
    from raysae.config.atlas import AtlasConfig
    from raysae.config.loading import load_recipe
    from raysae.config.mistakes import searchable_keys
    from raysae.config.recipe import (
        Recipe,
        RecordsConfig,
        describe_fields,
        parse_recipe,
    )
    from raysae.config.resources import ResourcesConfig
    from raysae.config.search import SelectConfig, SweepConfig
    from raysae.config.source import SourceConfig

__all__ = [
    "AtlasConfig",
    "Recipe",
    "RecordsConfig",
    "ResourcesConfig",
    "SelectConfig",
    "SourceConfig",
    "SweepConfig",
    "describe_fields",
    "load_recipe",
    "parse_recipe",
    "searchable_keys",
]

__getattr__ = loader(
    __name__,
    {
        "load_recipe": "raysae.config.loading",
        "searchable_keys": "raysae.config.mistakes",
        "AtlasConfig": "raysae.config.atlas",
        "Recipe": "raysae.config.recipe",
        "RecordsConfig": "raysae.config.recipe",
        "describe_fields": "raysae.config.recipe",
        "parse_recipe": "raysae.config.recipe",
        "ResourcesConfig": "raysae.config.resources",
        "SelectConfig": "raysae.config.search",
        "SweepConfig": "raysae.config.search",
        "SourceConfig": "raysae.config.source",
    },
)
