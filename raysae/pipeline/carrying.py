"""``atlas.carry``: layers that are not swept get their config from those that are.

Each such layer has a run of its own, without a search, in the folder of the recipe, as the swept ones do.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from raysae.activations import Site, Store
from raysae.config import Recipe
from raysae.errors import UserError
from raysae.pipeline.after_choice import parameters_of
from raysae.pipeline.plan import RunPlan
from raysae.pipeline.result import SweepResult
from raysae.sae import SAEConfig
from raysae.sae.config import KConfig
from raysae.sae.spread import participation_ratio
from raysae.sweep.selection.carrying import carried_between, scaled_by
from raysae.training import TrainingConfig

SPREAD_ROWS = 16_384
"""The most rows by which a layer's spread is measured."""
Config = tuple[SAEConfig, TrainingConfig]


def carried_layers(recipe: Recipe, plans: Mapping[str, RunPlan | Recipe]) -> list[int]:
    """The layers of the atlas that are not swept. Raises UserError when there are none, or the store
    lacks one that ``atlas.layers`` names."""
    if recipe.atlas.carry == "same":
        return []
    known = next(plan for plan in plans.values() if isinstance(plan, RunPlan)).data.layers
    wanted = known if recipe.atlas.layers is None else recipe.atlas.layers
    for layer in wanted:
        if layer not in known:
            there = ", ".join(map(str, known))
            raise UserError(f"atlas.layers: there is no layer {layer}; there are {there}")
    swept = recipe.sweep.per_layer or ()
    left = sorted({layer for layer in wanted if layer not in swept})
    if not left:
        raise UserError(
            f"atlas.carry is {recipe.atlas.carry!r}, but sweep.per_layer names every layer of the atlas; "
            "give fewer there, or atlas.carry=same"
        )
    return left


def carried_recipes(
    recipe: Recipe, layers: Sequence[int], results: Mapping[str, SweepResult]
) -> Iterator[tuple[str, Recipe | UserError]]:
    """The recipe of each of ``layers``, by the name of its run, or why it has none."""
    chosen = {
        one.run.recipe.sweep.layer: (one, config)
        for one in results.values()
        if (config := _chosen(one)) is not None
    }
    swept = {layer: found for layer, found in chosen.items() if layer is not None}
    for layer in layers:
        try:
            own = recipe.of_carried_layer(layer, *_config(recipe, layer, swept))
            yield own.name, own
        except UserError as error:
            yield f"layer-{layer:02d}", error


def _chosen(result: SweepResult) -> Config | None:
    number = result.selection.get("choice", {}).get("trial")
    if number is None:
        return None
    return result.run.recipe.with_parameters(parameters_of(result.run, number))


def _config(recipe: Recipe, layer: int, swept: Mapping[int, tuple[SweepResult, Config]]) -> Config:
    """A layer's config: that of the nearest swept layer, the lower of two, with another d_sae and K."""
    sizes = {}
    for at, (_, (sae, _)) in swept.items():
        if not isinstance(sae, KConfig):
            raise UserError(
                f"atlas.carry: layer {at} chose {sae.variant}, which has no K to carry over; "
                "atlas.carry=same takes its config as it is"
            )
        sizes[at] = (sae.d_sae, sae.k)
    if not sizes:
        raise UserError("atlas.carry: no swept layer has a choice to carry over")
    nearest = min(sizes, key=lambda one: (abs(one - layer), one))
    result, (sae, training) = swept[nearest]
    if recipe.atlas.carry == "layers":
        d_sae, k = carried_between(sizes, layer)
    else:
        d_sae, k = sizes[nearest]
        k = scaled_by(k, spread_ratio(result, nearest, layer), d_sae)
    changed: dict[str, Any] = {"d_sae": d_sae, "k": k}
    return replace(sae, **changed), training


def spread_ratio(result: SweepResult, swept: int, layer: int) -> float:
    """The spread of the rows of ``layer`` to that of the ``swept`` one, where that was swept."""
    from raysae.activations import open_store

    recipe = result.run.recipe
    store = open_store(recipe.store_place, copy=recipe.resources.copy_store)
    site = recipe.sites_of(store.layers, store.positions, store.hookpoints)[0]
    here, there = (_spread(store, replace(site, layer=one)) for one in (layer, swept))
    return here / there


def _spread(store: Store, site: Site) -> float:
    rows = store.site(site).validation if store.computes_rows else store.site(site).train
    return participation_ratio(rows.read(0, min(len(rows), SPREAD_ROWS)))
