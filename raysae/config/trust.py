"""A model's own code runs only for those who say so themselves, not because a run folder says so."""

from collections.abc import Mapping, Sequence
from typing import Any

from raysae.config.overrides import split_override
from raysae.config.reading import read_value
from raysae.errors import UserError

KEY = "source.trust_remote_code"


def refuse_others_trust(data: Mapping[str, Any], overrides: Sequence[str], where: str) -> None:
    """Check that what the recipe ``data`` of a run trusts is trusted by the ``overrides`` as well.

    Raises UserError that names the file and the key when it is not.
    """
    given = {key: read_value(key, text) for key, text in map(split_override, overrides)}
    for key in _trusting(data):
        if given.get(key) is None:
            raise UserError(
                f"{where}: says {key}: true, so Python code that lies beside the model would run here. "
                f"You decide: add {key}=true to the command when you have read that code and trust it, "
                f"or else {key}=false"
            )


def _trusting(data: Mapping[str, Any]) -> list[str]:
    """The keys of a recipe, and of its models, that trust code."""
    models = data.get("models")
    parts = {"": data}
    if isinstance(models, Mapping):
        parts |= {f"models.{name}.": own for name, own in models.items()}
    return [f"{name}{KEY}" for name, part in parts.items() if _trusts(part)]


def _trusts(recipe: Any) -> bool:
    source = recipe.get("source") if isinstance(recipe, Mapping) else None
    return isinstance(source, Mapping) and source.get("trust_remote_code") not in (None, False)
