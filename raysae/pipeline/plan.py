"""The plan of a run: everything that is determined from a recipe before any work."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from raysae.activations import Site, Store
from raysae.atlas.data import nothing_to_train
from raysae.atlas.sites import atlas_sites
from raysae.config import Recipe
from raysae.errors import UserError
from raysae.extraction.plan import ExtractionPlan
from raysae.pipeline.estimate import Needs
from raysae.records.folder import Data
from raysae.sites import chosen_hookpoints
from raysae.sweep.search.proposals import Known, Proposer


@dataclass(frozen=True)
class RunPlan:
    """A checked recipe with its data, its search, its sites and its needs."""

    recipe: Recipe
    store: Store | None
    """The store; None when it has to be extracted."""
    extraction: ExtractionPlan | None
    """How to make the store; None when it exists."""
    sites: list[Site]
    """The sites of the sweep; without one, a site of the atlas that stands for all of them."""
    atlas_sites: list[Site]
    """The sites of the atlas; empty without an atlas."""
    known: Known
    """Trials of earlier runs, for the sampler to learn from."""
    proposer: Proposer
    """Proposes the trials. It has a state: copy it to propose them a second time."""
    needs: Needs
    """The memory and disk space that the run takes."""
    live: ExtractionPlan | None = None
    """Of a live source, how its rows are computed while training, whether the store exists or not."""

    @property
    def data(self) -> Data:
        """What is known of the activations."""
        if self.store is not None:
            there = self.store
            return Data(there.digest, there.layers, there.positions, there.hookpoints)
        plan = self.extraction
        assert plan is not None
        return Data(None, plan.layers, plan.positions, plan.hookpoints)

    def with_store(self, store: Store) -> "RunPlan":
        """This plan with the extracted store; the sites of the atlas are then those of the store.

        Raises UserError when the store lacks a site that the recipe names.
        """
        atlas = sites_of_atlas(self.recipe, store)
        sites = (
            self.sites if self.recipe.sweep.enabled else sites_of_sweep(self.recipe, store, atlas)
        )
        return replace(self, store=store, extraction=None, sites=sites, atlas_sites=atlas)

    def all_sites(self) -> Iterator[Site]:
        """The sites of the sweep, then those of the atlas."""
        yield from self.sites
        yield from self.atlas_sites


def sites_of_sweep(recipe: Recipe, where: Store | ExtractionPlan, atlas: list[Site]) -> list[Site]:
    """The sites of the sweep; without one, the first site of the atlas at which something can be trained.

    Raises UserError when the atlas has no sites.
    """
    if recipe.sweep.enabled:
        return recipe.sites_of(where.layers, where.positions, where.hookpoints)
    if not atlas:
        raise UserError("atlas.layers, atlas.positions: name no site; nothing is left to train")
    if not isinstance(where, Store):
        return atlas[:1]
    usable = (site for site in atlas if nothing_to_train(where, site) is None)
    return [next(usable, atlas[0])]


def sites_of_atlas(recipe: Recipe, where: Store | ExtractionPlan) -> list[Site]:
    """The sites of the atlas, in a store or in the store that an extraction plan will make.

    Raises UserError when the store lacks a site that the recipe names.
    """
    if not recipe.atlas.enabled:
        return []
    wanted = recipe.atlas
    if isinstance(where, Store):
        return atlas_sites(where, wanted.layers, wanted.positions, wanted.hookpoints)
    layers = where.layers if wanted.layers is None else wanted.layers
    positions = where.positions if wanted.positions is None else wanted.positions
    names = chosen_hookpoints(wanted.hookpoints, where.hookpoints, "atlas.hookpoints")
    return [Site(layer, p, name) for layer in layers for p in positions for name in names]
