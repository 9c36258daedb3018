"""Everything that can be refused, refused before any work."""

from dataclasses import dataclass

from raysae.activations import Site, Store, open_store
from raysae.activations.extraction.plan import ExtractionPlan, existing_store, plan_extraction
from raysae.atlas.sites import atlas_sites
from raysae.cluster.session import check_address, check_dashboard, check_job_folders
from raysae.config import Recipe
from raysae.errors import UserError
from raysae.sweep.estimate import check_disk, needs, width
from raysae.sweep.proposals import make_proposer
from raysae.sweep.warm import known_trials

NO_VARIANCE = 1e-10
"""Share of the mean square norm up to which a variance is rounding."""


@dataclass(frozen=True)
class Preflight:
    """A checked recipe: its store when there is one, else how to extract it; where to sweep."""

    store: Store | None
    plan: ExtractionPlan | None
    sites: list[Site]


def preflight(recipe: Recipe) -> Preflight:
    """Check recipe, model, data and sites. Raises UserError at the first thing that cannot work."""
    known = known_trials(recipe)
    make_proposer(recipe, known)  # what contradicts itself is told before a store is looked at
    check_dashboard(recipe.resources)
    check_address(recipe.resources)
    check_job_folders(recipe)
    if recipe.store_uri is not None:
        open_store(recipe.store_uri)  # it is extracted to folders only
    plan = plan_extraction(recipe) if recipe.source is not None else None
    store = existing_store(plan) if plan is not None else open_store(recipe.store_place)
    make_proposer(recipe, known, width(store, plan))
    if store is not None:
        sites = recipe.sites_of(store.layers, store.positions)
        for site in sites:
            store.entry(site)
            check_site(store, site)
        atlas_sites(store, recipe.atlas.layers, recipe.atlas.positions)
        checked = Preflight(store, None, sites)
        _check_room(recipe, checked)
        return checked
    from raysae.activations.extraction.sequences import (
        peek,  # with torch, which a store does not need
    )

    assert plan is not None
    sites = recipe.sites_of(plan.layers, plan.positions)
    for wanted in (*sites, *_atlas_sites_of_plan(recipe, plan)):
        _check_in_plan(plan, wanted)
    checked = Preflight(None, plan, sites)
    _check_room(recipe, checked)
    peek(plan)
    return checked


def atlas_sites_of(recipe: Recipe, checked: Preflight) -> list[Site]:
    """Where the atlas will be trained."""
    if not recipe.atlas.enabled:
        return []
    if checked.store is not None:
        return atlas_sites(checked.store, recipe.atlas.layers, recipe.atlas.positions)
    assert checked.plan is not None
    return _atlas_sites_of_plan(recipe, checked.plan)


def _check_room(recipe: Recipe, checked: Preflight) -> None:
    atlas = atlas_sites_of(recipe, checked)
    check_disk(recipe, needs(recipe, checked.store, checked.plan, atlas))


def _atlas_sites_of_plan(recipe: Recipe, plan: ExtractionPlan) -> list[Site]:
    layers = plan.layers if recipe.atlas.layers is None else recipe.atlas.layers
    positions = plan.positions if recipe.atlas.positions is None else recipe.atlas.positions
    return [Site(layer, position) for layer in layers for position in positions]


def _check_in_plan(plan: ExtractionPlan, site: Site) -> None:
    if site.layer not in plan.layers or site.position not in plan.positions:
        raise UserError(
            f"{plan.folder}: the store to be extracted will have no site {site}; its layers are "
            f"{', '.join(map(str, plan.layers))}; its positions are "
            f"{', '.join(map(str, plan.positions))}"
        )


def check_site(store: Store, site: Site) -> None:
    """Raise UserError when nothing can be trained at ``site``: a split is empty or all rows equal."""
    entry = store.entry(site)
    for split in ("train", "validation"):
        if not getattr(entry.rows, split):
            raise UserError(
                f"{store.path}: {site} has no {split} rows; nothing can be trained there"
            )
    if entry.total_variance <= NO_VARIANCE * entry.mean_square_norm:
        raise UserError(
            f"{store.path}: at {site} all {entry.rows.total} rows are the same, so there is nothing "
            "to explain; are the texts alike up to that token?"
        )
