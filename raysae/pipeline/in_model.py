"""A search by what the model loses with a trial's SAE in it: its checks before any work, and its cost."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from raysae.activations import Store
from raysae.atlas.library.encoding import source_of_store
from raysae.config import Recipe
from raysae.errors import UserError
from raysae.extraction.plan import ExtractionPlan, model_spec, with_absolute_paths
from raysae.sae import build_sae
from raysae.sites import Site

if TYPE_CHECKING:
    from raysae.analysis.downstream import DownstreamLoss
    from raysae.config.source import SourceConfig
    from raysae.pipeline.extraction_forecast import ExtractionSpeed
    from raysae.pipeline.plan import RunPlan

TRIALS_FILE = "trials.parquet"
LAST = -1
"""The position after which nothing is read, unless a continuation follows the text."""


def judge_of(recipe: Recipe, store: Store, sites: Sequence[Site]) -> "DownstreamLoss | None":
    """What measures the SAEs of trials in the model; None where no objective or constraint asks for it.

    Raises UserError when nothing says which model made the store.
    """
    from raysae.analysis.downstream import DownstreamLoss

    wanted = recipe.sweep.in_model
    if not wanted:
        return None
    place = recipe.store_uri or str(store.opened_by)
    source = _source(recipe, store)
    return DownstreamLoss.of(
        store, place, source, sites, recipe.sweep.loss_texts, wanted, recipe.seed
    )


def check_in_model(recipe: Recipe, where: Store | ExtractionPlan, sites: Sequence[Site]) -> int:
    """Check, before any work, that the SAEs of trials can be put into the model; bytes of the model that
    each worker then holds. 0 where no objective or constraint asks for it.

    Raises UserError when the model is not at hand or not the store's, has no head for what is asked, or
    nothing follows the rows of a site.
    """
    if not recipe.sweep.in_model:
        return 0
    if isinstance(where, ExtractionPlan):
        return _check_plan(recipe, where, sites)
    from raysae.extraction.test_pass import without_bars

    try:
        judge = judge_of(recipe, where, sites)
        assert judge is not None
        with without_bars():
            judge.check()
    except UserError:
        if (
            recipe.run_folder / TRIALS_FILE
        ).is_file():  # the search has ended; its run is only read
            return 0
        raise
    return judge.model_bytes


def _source(recipe: Recipe, store: Store) -> "SourceConfig":
    if recipe.source is not None:
        return with_absolute_paths(recipe.source, recipe.base)
    source = source_of_store(store.manifest, recipe.base)
    if source is None:
        raise UserError(
            f"sweep.objectives: {', '.join(recipe.sweep.in_model)} needs the model behind the rows, and "
            f"those of {store.place} are {store.manifest.provenance}; choose another objective, such as "
            "explained_variance, or give a store that raysae extracted"
        )
    return source


def _check_plan(recipe: Recipe, plan: ExtractionPlan, sites: Sequence[Site]) -> int:
    """The same before the store is there."""
    from raysae.analysis.downstream import check_head
    from raysae.analysis.spliced_model import SplicedModel
    from raysae.analysis.token_batches import AUTO, continuation_of
    from raysae.extraction.test_pass import without_bars
    from raysae.transformer.loading import load_model

    source = plan.source
    with without_bars():
        model = load_model(model_spec(plan.readable))
    layers = sorted({site.layer for site in sites})
    spliced = SplicedModel(model, source.hookpoints, layers)
    check_head(spliced.model.has_head, recipe.sweep.in_model, source.model)
    nothing_after = spliced.model.causal and continuation_of(source, AUTO) is None
    last = [site for site in sites if site.position == LAST]
    if spliced.model.has_head and nothing_after and last and not source.packing:
        raise UserError(
            f"sweep.objectives: nothing follows the rows of {last[0]} in the texts, so the model's loss "
            "does not depend on them; sweep another position, such as all"
        )
    return sum(weight.numel() * weight.element_size() for weight in model.parameters())


@dataclass(frozen=True)
class InModelCost:
    """What measuring in the model costs a trial."""

    seconds: float | None
    """Of each trial, in a worker; None where it could not be measured."""
    text: str


def in_model_cost(
    plan: "RunPlan", speed: "ExtractionSpeed | None", workers: int
) -> InModelCost | None:
    """The cost of a search by the model's loss, told in the dry run; None without one.

    Where the store is there it is measured with an untrained SAE, else it follows from the measured speed
    of the extraction with so many workers.
    """
    recipe = plan.recipe
    if not recipe.sweep.in_model:
        return None
    members = len(plan.sites) * recipe.sweep.seeds_per_trial
    texts = recipe.sweep.loss_texts
    saes = f"each of its {members} SAEs" if members > 1 else "its SAE"
    what = (
        f"after each trial the model reads up to {texts} validation texts twice for {saes} "
        f"({', '.join(recipe.sweep.in_model)})"
    )
    if plan.store is not None:
        seconds = members * _measured(plan, plan.store)
        return InModelCost(seconds, f"{what}: {seconds:.2f} s a trial, measured here")
    if speed is None or not recipe.source or not recipe.source.sequences:
        return InModelCost(None, f"{what}; not measured, as the store is not there yet")
    tokens = texts * speed.tokens / recipe.source.sequences
    seconds = members * 2 * tokens * workers / speed.tokens_per_second
    return InModelCost(seconds, f"{what}: about {seconds:.2f} s a trial, by the extraction's speed")


def _measured(plan: "RunPlan", store: Store) -> float:
    """Seconds of an SAE of the largest config, once model and texts are there."""
    from raysae.extraction.test_pass import without_bars

    judge = judge_of(plan.recipe, store, plan.sites)
    assert judge is not None
    sae, _ = plan.needs.largest
    saes = {(plan.sites[0], 0): build_sae(sae, store.d_in).eval()}
    with without_bars():
        judge.figures(saes, lambda: None)
    began = time.perf_counter()
    judge.figures(saes, lambda: None)
    return time.perf_counter() - began
