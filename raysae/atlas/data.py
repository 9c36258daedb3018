"""Whether there is enough data at a site to train an SAE there, and to say anything by it."""

import math
from collections.abc import Sequence

from raysae.activations import Site, Store
from raysae.sae import SAEConfig

NO_VARIANCE = 1e-10
"""A variance up to this fraction of the mean square norm is only rounding error."""
FIRINGS = 10
"""Training rows in which a latent fires, on average, below which its direction is mostly noise."""
LISTED = 3
"""The most sites that a warning names."""


def nothing_to_train(store: Store, site: Site) -> str | None:
    """Why nothing can be trained at ``site``: a split is empty or all rows are equal; else None."""
    entry = store.entry(site)
    for split in ("train", "validation"):
        if not getattr(entry.rows, split):
            return (
                f"{store.place}: {site} has no {split} rows; nothing can be trained there; leave the "
                "site out (atlas.layers, atlas.positions), or give more texts"
            )
    if entry.total_variance <= NO_VARIANCE * entry.mean_square_norm:
        return (
            f"{store.place}: at {site} all {entry.rows.total} rows are the same, so there is nothing "
            "to explain; are the texts alike up to that token?"
        )
    return None


def rows_needed(sae: SAEConfig) -> int:
    """Training rows below which an SAE says little, whatever its figures are.

    With fewer rows than latents each row can have a latent of its own; and with K active latents a row, a
    latent fires in ``rows K / d_sae`` rows on average, which should be at least ``FIRINGS``.
    """
    k = getattr(sae, "k", None) or FIRINGS
    return max(sae.d_sae, math.ceil(FIRINGS * sae.d_sae / k))


def few_rows(store: Store, sae: SAEConfig, sites: Sequence[Site]) -> str | None:
    """A line on the sites with fewer training rows than ``rows_needed``; None without such sites."""
    needed = rows_needed(sae)
    found = {site: store.entry(site).rows.train for site in sites}
    few = {site: rows for site, rows in found.items() if 0 < rows < needed}
    if not few:
        return None
    named = [f"{site}" for site in list(few)[:LISTED]]
    more = [f"{len(few) - LISTED} more"] if len(few) > LISTED else []
    counts = " to ".join(f"{n:,}" for n in dict.fromkeys((min(few.values()), max(few.values()))))
    return (
        f"Few rows at {'; '.join([*named, *more])}: {counts} to train on, and d_sae {sae.d_sae:,} needs "
        f"{needed:,} to say anything (as many rows as latents, and {FIRINGS} rows in which a latent "
        "fires, on average); a smaller d_sae or more texts help"
    )
