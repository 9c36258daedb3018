"""The activation store: Parquet shards under a manifest. Reading needs no Ray."""

from raysae.activations.store import Store, open_store
from raysae.sites import Site

__all__ = ["Site", "Store", "open_store"]
