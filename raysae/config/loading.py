"""A recipe from a YAML file and overrides, or from the run that it made."""

import logging
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from raysae.config.overrides import overridden, split_override
from raysae.config.places import anchored, foreign_servers, is_handed_over, recipe_at
from raysae.config.reading import read_value, read_yaml
from raysae.config.recipe import Recipe, parse_recipe
from raysae.config.trust import refuse_others_trust
from raysae.errors import UserError
from raysae.redaction import (
    WHERE_SECRETS_BELONG,
    is_free_text,
    redacted,
    secret_in,
    secrets_in,
    without_secrets,
)
from raysae.storage.file_systems import Ranges
from raysae.storage.files import refuse_links_outside
from raysae.storage.local_copies import copied_uri, split

LOGGER = logging.getLogger(__name__)
CONFIG = "config.yaml"
OF_A_RUN = ("name", "runs_dir", "working_dir")
"""Keys that say where a run is; they cannot change while it is continued."""
_told: set[Path] = set()
"""Files of earlier versions' runs whose secrets were mentioned."""


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

    ``place`` holds ``runs_dir`` and ``name`` of a run whose ``folder`` is a copy of a URI. The run is in
    ``folder``, whatever its recipe says. Raises UserError when the folder is not a run, when a link in it
    leads out of it, or when an override names another run; without ``reading``, which runs nothing, also
    when it trusts code that the overrides do not trust.
    """
    refuse_links_outside(folder, "this run")
    if not (folder / CONFIG).is_file():
        raise UserError(
            f"{folder}: not a run folder (no config.yaml); expected one such as runs/NAME"
        )
    data = {**_of_run(folder), **place}
    if not reading:
        refuse_others_trust(data, overrides, str(folder / CONFIG))
    recipe = _changed(data, (), str(folder / CONFIG))
    changed = _changed(data, overrides, str(folder / CONFIG))
    if changed.run_place != recipe.run_place:
        given = ", ".join(key for key, _ in map(split_override, overrides) if key in OF_A_RUN)
        raise UserError(
            f"{given}: the run in {recipe.run_place} is continued where it is; leave that out, or "
            f"begin a new run with its recipe, {folder / 'config.yaml'}, instead of --resume"
        )
    return changed


def load_to_continue(
    folder: Path, overrides: Sequence[str] = (), *, reading: bool = False
) -> Recipe:
    """The recipe of the run in ``folder``, to work on it; see ``load_run``.

    A run that was made elsewhere or by another user says nothing about where else to write: its store
    is not made at a place that only its recipe names, and its servers are not used. Raises UserError, or
    logs a warning, that says which key to give in the command.
    """
    recipe = load_run(folder, overrides, reading=reading)
    folder = _plain(folder)
    if copied_uri(folder) is not None or not is_handed_over(read_yaml(folder / CONFIG), folder):
        return recipe
    given = {key for key, _ in map(split_override, overrides)}
    why = f"{folder}: this run was made elsewhere or by another user, so"
    if "store" not in given:
        _refuse_making_stores(recipe, why)
    data = recipe.dump()
    for key, named in foreign_servers(data, folder, recipe.base):
        if not any(key == one or key.startswith(f"{one}.") for one in given):
            LOGGER.warning(
                "%s %s=%s of its %s is not used; to use it, give it again", why, key, named, CONFIG
            )
            data = overridden(data, {key: None})
    return parse_recipe(data, str(folder / CONFIG))


def _refuse_making_stores(recipe: Recipe, why: str) -> None:
    for one in [recipe.of_model(name) for name in recipe.models] or [recipe]:
        if one.source is not None and not _has_store(one):
            raise UserError(
                f"{why} its store is not made at the place that its config.yaml names: there is none "
                f"in {one.store_uri or one.store_folder}; give the place in the command: store=FOLDER"
            )


def _has_store(recipe: Recipe) -> bool:
    if recipe.store_uri is None:
        return (recipe.store_folder / "manifest.json").is_file()
    return Ranges(recipe.store_uri).stamp("manifest.json") is not None


def _of_run(folder: Path) -> dict[str, Any]:
    data, folder = _read_without_secrets(folder / CONFIG), _plain(folder)
    uri = copied_uri(folder)
    if uri is not None:
        runs_dir, name = split(uri)
        return {**data, "runs_dir": runs_dir, "name": name}
    return recipe_at(data, folder)


def _plain(folder: Path) -> Path:
    folder = folder.absolute()
    return folder.resolve() if ".." in folder.parts else folder


def holds_secrets(folder: Path) -> bool:
    """Whether the ``config.yaml`` in ``folder`` holds a secret, as an earlier version could write it."""
    return any(secrets_in(read_yaml(folder / "config.yaml")))


def _read_without_secrets(file: Path) -> dict[str, Any]:
    """A run's recipe without the secrets that an earlier version let into it; says so once."""
    data = read_yaml(file)
    found = dict(secrets_in(data))
    if found and file.absolute() not in _told:
        _told.add(file.absolute())
        held = " and ".join(f"{key} holds {what}" for key, what in found.items())
        note = (
            f"{file}: {held}, which is not used, and is removed from the file when the run is "
            f"continued; {WHERE_SECRETS_BELONG}"
        )
        print(redacted(note), file=sys.stderr)
    return without_secrets(data) if found else data


def _changed(data: dict[str, Any], overrides: Iterable[str], where: str) -> Recipe:
    values, made = {}, data.get("working_dir")
    elsewhere = made is not None and Path(made) != Path.cwd()
    for key, text in map(split_override, overrides):
        found = secret_in(text, is_free_text(key))
        if found is not None:
            raise UserError(f"{where}: {key}: holds {found}; {WHERE_SECRETS_BELONG}")
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
