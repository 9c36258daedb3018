"""How the choice made at some layers gives the configs of the others.

``layers``: d_sae and K of a layer between two swept ones are interpolated on a logarithmic scale;
beyond the first and the last swept one they are those. ``spread``: K in the ratio of the number of
directions over which the layers' rows spread (``raysae.sae.spread``). ``scripts/carrying_over.py``
measures both.
"""

import math
from collections.abc import Mapping


def carried_between(swept: Mapping[int, tuple[int, int]], layer: int) -> tuple[int, int]:
    """The d_sae and K of ``layer``, from those of the swept layers, of which there is at least one."""
    below = max((one for one in swept if one <= layer), default=None)
    above = min((one for one in swept if one >= layer), default=None)
    if below is None or above is None or below == above:
        known = below if below is not None else above
        assert known is not None
        return swept[known]
    part = (layer - below) / (above - below)
    d_sae, k = (
        _between(low, high, part) for low, high in zip(swept[below], swept[above], strict=True)
    )
    return d_sae, min(k, d_sae)


def _between(low: int, high: int, part: float) -> int:
    return round(2 ** (math.log2(low) * (1 - part) + math.log2(high) * part))


def scaled_by(k: int, ratio: float, d_sae: int) -> int:
    """K in the ``ratio`` of a layer's spread to that of the swept one; between 1 and ``d_sae``."""
    return k if math.isnan(ratio) else min(max(round(k * ratio), 1), d_sae)
