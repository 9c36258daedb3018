"""The plan of a run: what was found out about a recipe before any work, once, for all that need it."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from raysae.activations import Site, Store
from raysae.atlas.sites import atlas_sites
from raysae.config import Recipe
from raysae.extraction.plan import ExtractionPlan
from raysae.pipeline.estimate import Needs
from raysae.records.folder import Data
from raysae.sweep.search.proposals import Known, Proposer


@dataclass(frozen=True)
class RunPlan:
    """A checked recipe: its data, its search, where it trains, what it needs."""

    recipe: Recipe
    store: Store | None
    """The store, when it is there."""
    extraction: ExtractionPlan | None
    """How to make the store, when it is not there."""
    sites: list[Site]
    """Where the sweep trains."""
    atlas_sites: list[Site]
    """Where the atlas trains; empty without one."""
    known: Known
    """Trials of earlier runs, for the sampler to learn from."""
    proposer: Proposer
    """Proposes the trials; it can do so once."""
    needs: Needs
    """Memory and disk."""

    @property
    def data(self) -> Data:
        """What is known of the activations."""
        if self.store is not None:
            return Data(self.store.digest, self.store.layers, self.store.positions)
        assert self.extraction is not None
        return Data(None, self.extraction.layers, self.extraction.positions)

    def with_store(self, store: Store) -> "RunPlan":
        """The plan once the store is there; its atlas has the sites that the store has."""
        return replace(
            self, store=store, extraction=None, atlas_sites=sites_of_atlas(self.recipe, store)
        )

    def all_sites(self) -> Iterator[Site]:
        """Every site that something is trained at."""
        yield from self.sites
        yield from self.atlas_sites


def sites_of_atlas(recipe: Recipe, where: Store | ExtractionPlan) -> list[Site]:
    """Where the atlas is trained, on a store or on the one that a plan makes.

    Raises UserError when the store lacks a site that the recipe names.
    """
    if not recipe.atlas.enabled:
        return []
    if isinstance(where, Store):
        return atlas_sites(where, recipe.atlas.layers, recipe.atlas.positions)
    layers = where.layers if recipe.atlas.layers is None else recipe.atlas.layers
    positions = where.positions if recipe.atlas.positions is None else recipe.atlas.positions
    return [Site(layer, position) for layer in layers for position in positions]
