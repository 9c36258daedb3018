"""All checks before any work; their result is the run's plan."""

from dataclasses import replace

from raysae.activations import Site, Store, open_store
from raysae.atlas.data import nothing_to_train
from raysae.cluster.session import check_address, check_dashboard, check_job_folders
from raysae.config import Recipe
from raysae.errors import UserError
from raysae.extraction.plan import ExtractionPlan, existing_store, plan_extraction
from raysae.pipeline.estimate import check_disk, needs
from raysae.pipeline.in_model import check_in_model
from raysae.pipeline.live_checks import check_live, check_live_store, is_live, refuse_without_source
from raysae.pipeline.plan import RunPlan, sites_of_atlas, sites_of_sweep
from raysae.sweep.search.earlier_trials import known_trials
from raysae.sweep.search.proposals import check_search, make_proposer


def preflight(recipe: Recipe) -> RunPlan:
    """Check recipe, model, data and sites, and make the run's plan.

    Raises UserError at the first thing that cannot work.
    """
    check_search(recipe)  # a recipe that contradicts itself is refused before a store is opened
    known = known_trials(recipe)
    check_dashboard(recipe.resources)
    check_address(recipe.resources)
    check_job_folders(recipe)
    check_live_store(recipe)
    extraction = plan_extraction(recipe) if recipe.source is not None else None
    store = existing_store(extraction) if extraction is not None else opened_store(recipe)
    where = store or extraction
    assert where is not None
    refuse_without_source(recipe, store)
    atlas = sites_of_atlas(recipe, where)
    sites = sites_of_sweep(recipe, where, atlas)
    _check_sites(where, sites, atlas)
    proposer = make_proposer(recipe, known, where.d_in)
    check_live(recipe, where, sites)
    wanted = needs(recipe, where, len(atlas), sites)
    wanted = replace(wanted, model_bytes=check_in_model(recipe, where, sites))
    check_disk(recipe, wanted)
    live = extraction if is_live(recipe) else None
    if isinstance(where, ExtractionPlan):
        from raysae.extraction.sequences import peek  # imports torch, which nothing needs before
        from raysae.extraction.test_pass import test_pass

        test_pass(where)
        peek(where)
        return RunPlan(recipe, None, where, sites, atlas, known, proposer, wanted, live)
    return RunPlan(recipe, where, None, sites, atlas, known, proposer, wanted, live)


def opened_store(recipe: Recipe) -> Store:
    """The recipe's store: at its folder, or at its URI, or in this node's copy of that."""
    return open_store(recipe.store_place, copy=recipe.resources.copy_store)


def _check_sites(where: Store | ExtractionPlan, sites: list[Site], atlas: list[Site]) -> None:
    if isinstance(where, Store):
        for site in sites:
            check_site(where, site)
    else:
        for site in (*sites, *atlas):
            _check_in_plan(where, site)


def _check_in_plan(plan: ExtractionPlan, site: Site) -> None:
    if site.layer not in plan.layers or site.position not in plan.positions:
        raise UserError(
            f"{plan.place}: the store to be extracted will have no site {site}; its layers are "
            f"{', '.join(map(str, plan.layers))}; its positions are "
            f"{', '.join(map(str, plan.positions))}"
        )


def check_site(store: Store, site: Site) -> None:
    """Raise UserError when nothing can be trained at ``site``: a split is empty or all rows are equal."""
    reason = nothing_to_train(store, site)
    if reason is not None:
        raise UserError(reason)
