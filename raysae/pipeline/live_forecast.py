"""The dry run's row on a live recipe: what a store first, live data, and live data that is kept cost."""

from raysae.activations.live import live_memory
from raysae.activations.schema import ITEM_BYTES
from raysae.cluster.placement import Placement
from raysae.config import Recipe
from raysae.extraction.plan import ExtractionPlan, model_spec
from raysae.pipeline.estimate import Needs, training_rows
from raysae.pipeline.extraction_forecast import TEXTS, ExtractionSpeed
from raysae.pipeline.live_checks import live_epochs
from raysae.pipeline.live_cost import Layers, Passes, Texts, choices, model_size, passes
from raysae.pipeline.plan import RunPlan
from raysae.sweep.trials.tuning import at_once
from raysae.training.memory import free_bytes, training_bytes


def live_row(plan: RunPlan, placement: Placement, speed: ExtractionSpeed | None) -> str:
    """What each way of a live recipe costs, a line each; ``speed`` is that of the extraction."""
    assert plan.live is not None
    texts = _texts(plan, plan.live, speed)
    if texts is None:
        return (
            "not known before the extraction, as neither source.sequences nor max_tokens is given"
        )
    model = model_size(model_spec(plan.live.readable))
    each = None if speed is None else speed.tokens_per_second * model.flop(1.0)
    swept = max(site.layer for site in plan.sites)
    atlas = max((site.layer for site in plan.atlas_sites), default=swept)
    layers = Layers(swept, atlas, max(plan.live.layers))
    ways = choices(
        model,
        texts,
        layers,
        live_passes(plan, placement, False),
        live_passes(plan, placement, True),
    )
    measured = "" if each is None else f"measured here: {each:.3g} FLOP a second in all workers"
    return "\n".join([*(way.line(each) for way in ways), *([measured] if measured else [])])


def live_passes(plan: RunPlan, placement: Placement, keep: bool) -> Passes:
    """The forward passes over the training texts that a live run takes."""
    recipe, where = plan.recipe, plan.store or plan.live
    assert where is not None
    rows = training_rows(where, plan.sites[0])
    epochs = live_epochs(recipe, where.d_in, rows) if rows else recipe.training.epochs
    wave = at_once(recipe, placement, plan.proposer.lag) * recipe.resources.gang
    sites = len(plan.atlas_sites)
    together = sites_per_pass(recipe, plan.needs, sites, rows)
    trials = plan.proposer.trials if recipe.sweep.enabled else 0
    return passes(trials, wave, epochs, sites, together, keep)


def sites_per_pass(recipe: Recipe, wanted: Needs, sites: int, rows: int | None) -> int:
    """How many sites of the atlas memory holds at once: their SAEs in training and their windows.

    ``rows`` are the training rows of a site, None when they are not known.
    """
    free, (sae, training) = free_bytes("cpu"), wanted.largest
    source = recipe.source
    if free is None or source is None:
        return sites
    windows = live_memory(
        training.shuffle_rows,
        rows or training.shuffle_rows,
        wanted.d_in * ITEM_BYTES[source.dtype],
        1,
    )
    each = training_bytes(wanted.d_in, sae.d_sae, training) + windows
    each *= recipe.atlas.seeds_per_site
    return max(min(sites, free // each), 1)


def live_share(plan: ExtractionPlan) -> float:
    """The fraction of the tokens that a live extraction runs before training, about."""
    source = plan.source
    training = 1.0 - source.validation - source.test
    return Texts(1.0, 1.0, 1, training, plan.d_in, source.dtype, 1).before


def _texts(plan: RunPlan, live: ExtractionPlan, speed: ExtractionSpeed | None) -> Texts | None:
    """The texts of the store: counted where it is there, else by the first ones."""
    source = live.source
    training = 1.0 - source.validation - source.test
    tokens = rows = 0.0
    if plan.store is not None:
        tokens = sum(part.tokens for part in plan.store.manifest.sequences)
        layer = plan.store.layers[0]
        sites = {site.position: site for site in plan.store.sites if site.layer == layer}
        rows = sum(plan.store.entry(site).rows.total for site in sites.values())
    elif speed is not None:
        tokens, rows = speed.tokens, speed.rows
    elif source.max_tokens is not None:
        tokens, rows = _first(live)
        rows, tokens = rows * source.max_tokens / tokens, float(source.max_tokens)
    if not tokens:
        return None
    if source.max_tokens is not None and tokens > source.max_tokens:
        rows, tokens = rows * source.max_tokens / tokens, source.max_tokens
    positions, layers = len(live.positions), live.sites_at_a_position
    return Texts(tokens, rows, positions, training, live.d_in, source.dtype, layers)


def _first(plan: ExtractionPlan) -> tuple[float, float]:
    """Tokens and rows (of all positions at one layer) of the first texts."""
    from raysae.extraction.sequences import first_sequences

    sequences, names = first_sequences(plan, TEXTS), plan.source.used_patterns
    rows = sum(len(one.places(p, names)) for one in sequences for p in plan.positions)
    return float(sum(map(len, sequences))), float(rows)
