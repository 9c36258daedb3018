"""Everything that can be refused, refused before any work."""

from dataclasses import dataclass

from raysae.activations import Site, Store, open_store
from raysae.activations.extraction.plan import ExtractionPlan, existing_store, plan_extraction
from raysae.activations.extraction.sequences import peek
from raysae.atlas.training import atlas_sites
from raysae.cluster.session import check_address, check_dashboard
from raysae.config import Recipe
from raysae.errors import UserError
from raysae.sweep.proposals import make_proposer

NO_VARIANCE = 1e-10
"""Share of the mean square norm up to which a variance is rounding."""


@dataclass(frozen=True)
class Preflight:
    """A checked recipe: its store when there is one, else how to extract it; where to sweep."""

    store: Store | None
    plan: ExtractionPlan | None
    site: Site


def preflight(recipe: Recipe) -> Preflight:
    """Check recipe, model, data and sites. Raises UserError at the first thing that cannot work."""
    make_proposer(recipe)
    check_dashboard(recipe.resources)
    check_address(recipe.resources)
    plan = plan_extraction(recipe) if recipe.source is not None else None
    store = existing_store(plan) if plan is not None else open_store(recipe.store_folder)
    if store is not None:
        site = recipe.site_of(store.layers, store.positions)
        store.entry(site)
        check_site(store, site)
        atlas_sites(store, recipe.atlas.layers, recipe.atlas.positions)
        return Preflight(store, None, site)
    assert plan is not None
    site = recipe.site_of(plan.layers, plan.positions)
    for wanted in (site, *_atlas_sites_of_plan(recipe, plan)):
        _check_in_plan(plan, wanted)
    peek(plan)
    return Preflight(None, plan, site)


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
