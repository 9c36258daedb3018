"""Atlases of any shape, as rows of the table, with figures that a seed makes."""

import random

from raysae.records.rows import SiteRow


def atlas(layers, positions, *, holes=(), hookpoint=None, ev=None, **figures):
    """Rows of an atlas. ``holes`` are (layer, position) without SAE; ``ev(layer, position)`` gives
    explained variance."""
    noise = random.Random(0)

    def row(layer, position):
        if (layer, position) in holes:
            return SiteRow(layer, str(position), "failed", "no rows at this site", {}, hookpoint)
        value = 0.9 + noise.gauss(0, 0.02) if ev is None else ev(layer, position)
        found = {
            "explained_variance": value, "mse": (1 - value) * 10 ** (3 * layer / layers),
            "l0": 32.0, "dead_fraction": 0.1 + noise.random() / 10, "dead_window_tokens": 20_000,
            "seconds": 3.0,
        }  # fmt: skip
        return SiteRow(layer, str(position), "done", "", {**found, **figures}, hookpoint)

    return [row(layer, position) for layer in range(layers) for position in positions]
