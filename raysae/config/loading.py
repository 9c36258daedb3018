"""A recipe from a YAML file and overrides."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from raysae.config.overrides import overridden, parse_override
from raysae.config.recipe import Recipe, parse_recipe
from raysae.errors import UserError


def load_recipe(path: str | Path | None = None, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe in a YAML file (the quickstart without one) with ``key=value`` overrides applied.

    Raises UserError naming the file and the key when something in it is wrong.
    """
    data: dict[str, Any] = {}
    if path is not None:
        data = _read_yaml(Path(path))
        data.setdefault("name", re.sub(r"[^A-Za-z0-9._-]", "-", Path(path).stem))
    parsed = dict(parse_override(override) for override in overrides)
    return parse_recipe(overridden(data, parsed), str(path) if path else "recipe")


def _read_yaml(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise UserError(f"{path}: no such config file")
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise UserError(f"{path}: expected keys and values, found a {type(data).__name__}")
    return data
