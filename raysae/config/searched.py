"""Settings that a search replaces in every trial: their defaults need not fit the other settings."""

import re
from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any

from raysae.config.kinds import kind_of
from raysae.config.search import SweepConfig
from raysae.sae.config import CONFIGS, DEFAULT_VARIANT

POWER_OF_TEN = re.compile(r"[-+]?\d[\d_]*(\.[\d_]*)?[eE][-+]?\d+")
"""A number such as ``1e3``, which YAML 1.1 calls text."""


def as_number(value: Any) -> Any:
    """``value``, as a number if it is a text such as ``1e3``."""
    written = isinstance(value, str) and POWER_OF_TEN.fullmatch(value)
    return float(value) if written else value


def with_searched_defaults(data: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of a recipe, so that what every trial replaces contradicts nothing.

    A default K above a given ``d_sae`` is lowered if K is searched, and a default ``d_sae`` below a given
    K is raised if it is searched. Ranges of whole numbers have whole ends.
    """
    sweep, sae = data.get("sweep"), data.get("sae")
    data = {**data, "sweep": _with_whole_ends(sweep)} if isinstance(sweep, Mapping) else dict(data)
    fitted = _fitted(sae, _in_every_trial(sweep)) if isinstance(sae, Mapping) else sae
    return data if fitted is sae else {**data, "sae": fitted}


def _fitted(sae: Mapping[str, Any], searched: set[str]) -> Mapping[str, Any]:
    defaults = _defaults(sae.get("variant", DEFAULT_VARIANT))
    if "k" not in defaults:
        return sae
    d_sae, k = sae.get("d_sae", defaults["d_sae"]), sae.get("k", defaults["k"])
    if not isinstance(d_sae, int | float) or not isinstance(k, int | float) or k <= d_sae:
        return sae
    if "k" not in sae and "sae.k" in searched:
        return {**sae, "k": d_sae}
    if "d_sae" not in sae and "sae.d_sae" in searched and "sae.k" not in searched:
        return {**sae, "d_sae": k}
    return sae


def _defaults(variant: Any) -> dict[str, Any]:
    config: Any = CONFIGS.get(variant) if isinstance(variant, str) else None
    known = fields(config) if config is not None else ()
    return {field.name: field.default for field in known if field.default is not MISSING}


def _in_every_trial(sweep: Any) -> set[str]:
    """The dotted keys that every trial sets."""
    if isinstance(sweep, SweepConfig):
        sweep = sweep.model_dump()
    sweep = sweep if isinstance(sweep, Mapping) else {}
    if sweep.get("enabled") is False:
        return set()
    if sweep.get("sampler") == "list":
        configs = [set(one) for one in sweep.get("configs") or () if isinstance(one, Mapping)]
        return set.intersection(*configs) if configs else set()
    space = sweep.get("space", SweepConfig().space)
    return set(space) if isinstance(space, Mapping) else set()


def _with_whole_ends(sweep: Mapping[str, Any]) -> dict[str, Any]:
    """``sweep`` in which ranges of whole numbers have ends such as 1000 where 1e3 was given."""
    space = sweep.get("space")
    if not isinstance(space, Mapping):
        return dict(sweep)
    ranges = {
        key: {**values, **{end: _whole(values[end]) for end in ("low", "high") if end in values}}
        for key, values in space.items()
        if isinstance(key, str) and isinstance(values, Mapping) and kind_of(key).is_whole
    }
    return {**sweep, "space": {**space, **ranges}}


def _whole(value: Any) -> Any:
    number = as_number(value)
    return int(number) if isinstance(number, float) and number.is_integer() else value
