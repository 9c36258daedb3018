"""Which keys a recipe can have, and what is said of those that it cannot have."""

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from pydantic import BaseModel

from raysae.config.limits import LONGEST_KEY, shortened
from raysae.config.section import SECRET
from raysae.errors import UserError
from raysae.sae.config import CONFIGS
from raysae.training.config import TrainingConfig

UNION_TAG = re.compile(
    r"choices|range|int|float|str|tuple\[.*|literal\[.*|constrained-.*|" + "|".join(CONFIGS)
)
"""Parts of a pydantic location that name the branch of a union and not a key."""


def explain(item: dict[str, Any], known: Sequence[str]) -> str:
    """One pydantic complaint as a line: the key, what was found, what to do; ``known`` are all
    keys."""
    parts = [str(part) for part in item["loc"] if not UNION_TAG.fullmatch(str(part))]
    key = shortened(".".join(parts))[1:-1] or "the whole"
    if item["type"] == SECRET:  # what was found must not be shown
        inner = item["ctx"]["inner"]
        return f"{key}{'.' if inner else ''}{inner}: {item['msg']}"
    shown = shortened(item["input"])
    if item["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        if key in known:  # a setting of another variant
            variant = str(item["loc"][1])
            names = field_names(CONFIGS[variant])
            return f"{key}: {variant} has no such setting; it has {', '.join(names)}"
        return f"{key}: unknown key{nearest(key, known)}"
    if item["type"] in ("tuple_type", "list_type") and not isinstance(item["input"], dict):
        plain = shown[1:-1] if isinstance(item["input"], str) else shown
        return f"{key}: found {shown}; expected a list, such as [{plain}]"
    if item["type"] in ("dict_type", "model_type", "dataclass_type"):
        return f"{key}: found {shown}; expected a section of keys and values"
    message = item["msg"].removeprefix("Value error, ")
    found = "" if isinstance(item["input"], dict | BaseModel) else f" (found {shown})"
    return f"{key}: {message}{found}"


def field_names(config: Any) -> list[str]:
    """The names of a dataclass's fields, in their order."""
    return [field.name for field in fields(config)]


def searchable_keys(variant: str) -> set[str]:
    """The keys that a search over SAEs of ``variant`` may have."""
    training = {f"training.{name}" for name in field_names(TrainingConfig)}
    return training | {f"sae.{name}" for name in field_names(CONFIGS[variant])}


def refuse_unknown(parameters: Mapping[str, Any], variant: str) -> None:
    """Raise UserError when a key is none that can be searched with ``variant``."""
    own = field_names(CONFIGS[variant])
    all_sae = [f"sae.{name}" for sae in CONFIGS.values() for name in field_names(sae)]
    training = [f"training.{name}" for name in field_names(TrainingConfig)]
    for key in parameters:
        if key not in [*all_sae, *training]:
            raise UserError(
                f"sweep: {key}: only keys under sae. and training. can be searched"
                f"{nearest(key, [*dict.fromkeys(all_sae), *training])}"
            )
        if key not in training and key.removeprefix("sae.") not in own:
            raise UserError(f"sweep: {key}: {variant} has no such setting; it has {', '.join(own)}")


def nearest(key: str, known: Sequence[str]) -> str:
    """A hint at the known key that ``key`` is most like; at all of them where none is like it."""
    sections = {name.rsplit(".", 1)[0] for name in known if "." in name}
    close = difflib.get_close_matches(
        key[:LONGEST_KEY], [*known, *sorted(sections)], n=1, cutoff=0.5
    )
    return f"; did you mean {close[0]}?" if close else f"; known: {', '.join(known)}"
