"""What the trials that the law of scaling foretells would cost, on this machine and at least on a GPU."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from raysae.activations import Site, Store
from raysae.config import Recipe
from raysae.pipeline.floor import training_work
from raysae.records.rows import TrialRow


def with_costs(
    scaling: dict[str, Any],
    trials: Sequence[TrialRow],
    recipe: Recipe,
    store: Store,
    sites: Sequence[Site],
) -> dict[str, Any]:
    """``scaling`` with the cost of each prediction: ``tokens``, ``seconds`` in a worker of this run, and
    ``floor_seconds``, the least time on an H100.

    The seconds follow from the trial nearest to it, as if a step took as many times longer as the
    dictionary is larger; small dictionaries take less. A trial's cost is that of all its seeds and sites.
    """
    timed = [row for row in trials if row.done and row.k is not None and _speed(row)]
    if not timed:
        return scaling
    return {
        **scaling,
        "predictions": [
            {**one, **_cost(one, timed, recipe, store, sites)} for one in scaling["predictions"]
        ],
    }


def _cost(
    prediction: dict[str, Any],
    timed: Sequence[TrialRow],
    recipe: Recipe,
    store: Store,
    sites: Sequence[Site],
) -> dict[str, float]:
    d_sae, k = prediction["d_sae"], prediction["k"]
    near = min(timed, key=lambda row: (-row.d_sae, abs((row.k or 0) - k), row.trial))
    sae, training = recipe.with_parameters({})
    sizes: dict[str, Any] = {"d_sae": d_sae, "k": min(k, d_sae)}
    sae = replace(sae, **sizes) if hasattr(sae, "k") else replace(sae, d_sae=d_sae)
    members = recipe.sweep.seeds_per_trial
    works = [
        training_work(store.d_in, sae, training, store.entry(site).rows.train) for site in sites
    ]
    tokens = near["tokens_trained"]
    return {
        "tokens": tokens,
        "seconds": tokens / _speed(near) * max(d_sae / near.d_sae, 1.0),
        "floor_seconds": members * sum(work.seconds for work in works),
    }


def _speed(row: TrialRow) -> float:
    """Tokens a second; 0 where it is not known."""
    return float(row.get("tokens_per_second") or 0.0)
