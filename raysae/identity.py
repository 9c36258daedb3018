"""What made a product, as flat keys and values; two of them are compared key by key.

A product (a store, a trial, a site of the atlas, a choice) is the one that is wanted when everything
that made it is the same. A key that did not exist when it was made counts as its default.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any

Made = Mapping[str, Any]
"""Dotted keys to plain JSON values, such as ``{"store": "9650...", "sae.k": 32, "seed": 0}``."""
Same = Mapping[str, list[Any]]
"""For a key, values that count as the same, because a run went on with ``--force``."""

MISSING = "(not recorded)"
NONE: Mapping[str, Any] = MappingProxyType({})


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested keys as dotted ones, with values as JSON gives them back (tuples are lists)."""
    rows: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            rows |= flat(value, f"{prefix}{key}.")
        else:
            rows[f"{prefix}{key}"] = list(value) if isinstance(value, tuple) else value
    return rows


def differences(
    there: Made, wanted: Made, defaults: Made = NONE, same: Same = NONE
) -> dict[str, tuple[Any, Any]]:
    """Keys whose values differ, each with what is there and what is wanted.

    A key that ``there`` lacks has its value in ``defaults``, when it has one. ``same`` holds values
    that count as equal.
    """
    found = {}
    for key in dict.fromkeys([*there, *wanted]):
        here = there.get(key, defaults.get(key, MISSING))
        asked = wanted.get(key, MISSING)
        alike = same.get(key, [])
        if here != asked and not (here in alike and asked in alike):
            found[key] = here, asked
    return found


def union(same: Same, found: Mapping[str, tuple[Any, Any]]) -> dict[str, list[Any]]:
    """``same`` with each of the differences ``found`` as a further pair of equal values."""
    more = {key: list(values) for key, values in same.items()}
    for key, pair in found.items():
        values = more.setdefault(key, [])
        values += [value for value in pair if value not in values]
    return more


def lines(found: Mapping[str, tuple[Any, Any]]) -> str:
    """Differences for people, both sides of each: ``-key: there`` and ``+key: asked for``."""
    pairs = (
        f"  -{key}: {_shown(there)}\n  +{key}: {_shown(wanted)}"
        for key, (there, wanted) in sorted(found.items())
    )
    return "\n".join(pairs)


def identifier(made: Made) -> str:
    """A short name for what was made so: twelve hexadecimal digits."""
    return hashlib.sha256(json.dumps(made, sort_keys=True).encode()).hexdigest()[:12]


def without(made: Made, keys: Iterable[str]) -> dict[str, Any]:
    """``made`` without some of its keys."""
    left_out = set(keys)
    return {key: value for key, value in made.items() if key not in left_out}


def _shown(value: Any) -> str:
    return value if value == MISSING else json.dumps(value)
