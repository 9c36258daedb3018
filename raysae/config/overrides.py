"""Dotted keys: how ``key=value`` is split, and how values replace those of a recipe."""

from collections.abc import Mapping
from typing import Any

from raysae.config.limits import LONGEST_KEY, MOST_PARTS, is_text, shortened
from raysae.config.search import SweepConfig
from raysae.errors import UserError

SPACE = "sweep.space."


def split_override(override: str) -> tuple[str, str]:
    """The key and the text of ``key=value``. Raises UserError on another form."""
    key, equals, value = override.partition("=")
    if not equals or not key:
        raise UserError(f"{shortened(override)}: expected key=value, such as sweep.trials=16")
    if len(key) > LONGEST_KEY or key.count(".") >= MOST_PARTS:
        raise UserError(
            f"{shortened(override)}: no key is so long; expected such as sweep.trials=16"
        )
    if not is_text(override):
        raise UserError(f"{shortened(override)}: is no UTF-8 text; write the name in UTF-8")
    return key, value


def overridden(data: dict[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """``data`` with dotted keys replaced; keys of ``sweep.space`` keep their own dots."""
    result = dict(data)
    for key, value in overrides.items():
        head, _, rest = key.partition(".")
        if not rest:
            result[head] = value
        elif key.startswith(SPACE):
            sweep = dict(result.get("sweep") or {})
            default = {k: v.model_dump() for k, v in SweepConfig().space.items()}
            sweep["space"] = {**(sweep.get("space") or default), key.removeprefix(SPACE): value}
            result["sweep"] = sweep
        else:
            inner = result.get(head)
            result[head] = overridden(inner if isinstance(inner, dict) else {}, {rest: value})
    return result


def merged(data: Mapping[str, Any] | None, more: Mapping[str, Any]) -> dict[str, Any]:
    """``data`` with the keys of ``more`` replaced, section by section; a search space as a whole."""
    result = dict(data or {})
    for key, value in more.items():
        inner = result.get(key)
        whole = key == "space" or not isinstance(value, Mapping) or not isinstance(inner, Mapping)
        result[key] = value if whole else merged(inner, value)
    return result
