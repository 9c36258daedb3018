"""A recipe from a YAML file and overrides, or from the run that it made."""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from raysae.config.overrides import overridden, split_override
from raysae.config.places import anchored, recipe_at
from raysae.config.reading import read_value, read_yaml
from raysae.config.recipe import Recipe, parse_recipe
from raysae.config.trust import refuse_others_trust
from raysae.errors import UserError
from raysae.storage.remote import is_copy

OF_A_RUN = ("name", "runs_dir", "working_dir")
"""Keys that say where a run is; they cannot change while it is continued."""


def load_recipe(path: str | Path | None = None, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe in a YAML file (the quickstart without one) with ``key=value`` overrides applied.

    Relative paths in a run's ``config.yaml`` start from where the run was made; those in overrides start
    from the working folder. Raises UserError naming the file and the key when something in it is wrong,
    or when it is a run's and trusts code that the overrides do not trust.
    """
    data: dict[str, Any] = {}
    if path is not None:
        file = Path(path)
        of_run = _is_file(file.parent / "status.json")
        data = _of_run(file.parent) if of_run else read_yaml(file)
        if of_run:
            refuse_others_trust(data, overrides, str(file))
        data.setdefault("name", re.sub(r"[^A-Za-z0-9._-]", "-", file.stem))
    return _changed(data, overrides, str(path) if path else "recipe")


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name that is too long; told when it is read
        return False


def load_run(
    folder: Path,
    overrides: Sequence[str] = (),
    place: Mapping[str, Any] = {},
    *,
    reading: bool = True,
) -> Recipe:
    """The recipe of the run in ``folder``, with ``key=value`` overrides applied.

    ``place`` holds ``runs_dir`` and ``name`` of a run whose ``folder`` is a copy of a URI. Raises
    UserError when the folder is not a run, or an override names another run; without ``reading``, which
    runs nothing, also when it trusts code that the overrides do not trust.
    """
    if not (folder / "config.yaml").is_file():
        raise UserError(
            f"{folder}: not a run folder (no config.yaml); expected one such as runs/NAME"
        )
    data = {**_of_run(folder), **place}
    if not reading:
        refuse_others_trust(data, overrides, str(folder / "config.yaml"))
    recipe = _changed(data, (), str(folder / "config.yaml"))
    changed = _changed(data, overrides, str(folder / "config.yaml"))
    if changed.run_place != recipe.run_place:
        given = ", ".join(key for key, _ in map(split_override, overrides) if key in OF_A_RUN)
        raise UserError(
            f"{given}: the run in {recipe.run_place} is continued where it is; leave that out, or "
            f"begin a new run with its recipe, {folder / 'config.yaml'}, instead of --resume"
        )
    return changed


def _of_run(folder: Path) -> dict[str, Any]:
    data, folder = read_yaml(folder / "config.yaml"), folder.absolute()
    if ".." in folder.parts:
        folder = folder.resolve()
    return data if is_copy(folder) else recipe_at(data, folder)


def _changed(data: dict[str, Any], overrides: Iterable[str], where: str) -> Recipe:
    values, made = {}, data.get("working_dir")
    elsewhere = made is not None and Path(made) != Path.cwd()
    for key, text in map(split_override, overrides):
        value = read_value(key, text)
        values[key] = _from_here(key, value) if elsewhere else value
    return parse_recipe(overridden(data, values), where)


def _from_here(key: str, value: Any) -> Any:
    """A value that was given in the working folder, with absolute paths."""
    nested = value
    for part in reversed(key.split(".")):
        nested = {part: nested}
    nested = anchored(nested, Path.cwd())
    for part in key.split("."):
        nested = nested[part]
    return nested
