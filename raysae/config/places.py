"""Where the relative paths of a recipe start: a run's paths mean the same wherever one stands."""

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from raysae.storage.files import expanded
from raysae.storage.remote import is_uri

SQLITE, FILE = "sqlite:///", "file:"
"""Schemes of MLflow's local places, whose paths may be relative."""
SERVERS = (("records", "tracking_uri"), ("resources", "address"))
"""Keys that say to whom a run's records or its work are sent."""


def path_in(base: Path, name: str) -> Path:
    """The file or folder that ``name`` means to someone who stands in ``base``."""
    return base / expanded(name)


def tracking_in(base: Path, uri: str) -> str:
    """MLflow's address ``uri`` with an absolute path, if it is a local file or folder."""
    for scheme in (SQLITE, FILE):
        rest = uri.removeprefix(scheme)
        if rest != uri and rest and not rest.startswith(("/", ":memory:")):
            return f"{scheme}{path_in(base, rest)}"
    local = ":" not in uri and uri not in ("databricks", "databricks-uc", "uc")
    return str(path_in(base, uri)) if local else uri


def source_in(base: Path, source: Mapping[str, Any]) -> dict[str, Any]:
    """Those of a source's keys that name files or folders in ``base``, with absolute paths.

    What is nowhere else than in the working folder is not meant: there it becomes a path that is missing.
    """
    paths = {}
    for key in ("model", "dataset"):
        value = source.get(key)
        if not isinstance(value, str) or value == "pocket" or is_uri(value):
            continue
        path = path_in(base, value)
        if _exists(path) or _exists(Path(value)):
            paths[key] = str(path.absolute())
    return paths


def anchored(data: Mapping[str, Any], base: Path) -> dict[str, Any]:
    """The keys of a recipe in ``data`` with the paths that they have for someone in ``base``."""
    result = dict(data)

    def change(keys: Mapping[str, Any], key: str, to: Callable[[str], Any]) -> dict[str, Any]:
        value = keys.get(key)
        if not isinstance(value, str) or is_uri(value):
            return dict(keys)
        return {**keys, key: to(value)}

    def absolute(name: str) -> str:
        return str(path_in(base, name))

    for key in ("runs_dir", "store", "working_dir"):
        result = change(result, key, absolute)
    if isinstance(source := result.get("source"), Mapping):
        result["source"] = {**source, **source_in(base, source)}
    if isinstance(sweep := result.get("sweep"), Mapping):
        known = sweep.get("warm_start")
        if isinstance(known, list | tuple):
            known = [absolute(name) if isinstance(name, str) else name for name in known]
            result["sweep"] = {**sweep, "warm_start": known}
    if isinstance(records := result.get("records"), Mapping):
        uri = records.get("tracking_uri")
        if isinstance(uri, str):
            result["records"] = {**records, "tracking_uri": tracking_in(base, uri)}
    return result


def recipe_at(data: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The recipe ``data`` of the run in ``folder``, so that its paths lead to where they did.

    The run itself is in ``folder``, whatever the recipe says. A run records in ``working_dir`` where it
    was made. For a run that has been moved, copied or linked to, or that is older than this record, the
    folder is found from where the run lies and from where its store lies.
    """
    name, runs_dir = str(data.get("name", folder.name)), str(data.get("runs_dir", "runs"))
    made = data.get("working_dir")
    store = data.get("store") or f"stores/{name}"
    there = _recorded_place(data)
    if there == folder:
        return dict(data)
    if there is not None and _is_same(there, folder):  # by another way, which others may change
        return {**data, "runs_dir": str(folder.parent), "name": folder.name, "store": store}
    bases = [*_bases_of(folder, runs_dir), *([Path(made)] if made else [])]
    if made is None:
        bases += [*folder.parents, Path.cwd()]
    holding = [base for base in bases if not is_uri(store) and _exists(path_in(base, store))]
    base = (holding or bases)[0]
    result = {**data, "working_dir": str(base)}
    if not _is_same(path_in(base, runs_dir) / name, folder):
        moved = _moved_store(data, store, folder)
        result |= {"runs_dir": str(folder.parent), "name": folder.name, "store": moved}
    if made is not None:
        result = _still_there(result, base, Path(made))
    return result


def is_handed_over(data: Mapping[str, Any], folder: Path) -> bool:
    """Whether the run in ``folder`` may be another person's: it was made elsewhere, or by another user.

    ``data`` is the recipe as its ``config.yaml`` has it.
    """
    there = _recorded_place(data)
    here = there is not None and (there == folder or _is_same(there, folder))
    return not here or (folder / "config.yaml").stat().st_uid != os.getuid()


def foreign_servers(data: Mapping[str, Any], folder: Path, base: Path) -> Iterator[tuple[str, str]]:
    """The keys, and their values, by which a run that was handed over would send records or work away.

    ``data`` is the recipe of the run in ``folder``, and its relative paths start from ``base``. MLflow's
    file in a project that was moved as a whole is none.
    """
    for section, key in SERVERS:
        named = data[section][key]
        rest = str(named).removeprefix(SQLITE)
        parts = Path(rest).parts
        moved = rest != named and not rest.startswith(("/", "~")) and ".." not in parts
        if named is not None and not (moved and base in folder.parents):
            yield f"{section}.{key}", named


def _recorded_place(data: Mapping[str, Any]) -> Path | None:
    """The folder of the run by its own record; None when there is no record, or it names a URI."""
    made, runs_dir = data.get("working_dir"), str(data.get("runs_dir", "runs"))
    if not isinstance(made, str) or is_uri(runs_dir):
        return None
    return path_in(Path(made), runs_dir) / str(data.get("name", ""))


def _bases_of(folder: Path, runs_dir: str) -> Iterator[Path]:
    """Folders in which ``runs_dir`` means the parent of ``folder``."""
    parts = Path(runs_dir).parts
    if is_uri(runs_dir) or expanded(runs_dir).is_absolute() or ".." in parts:
        return
    for parent in dict.fromkeys((folder.parent, folder.resolve().parent)):
        if not parts:
            yield parent
        elif parent.parts[-len(parts) :] == parts:
            yield Path(*parent.parts[: -len(parts)])


def _moved_store(data: Mapping[str, Any], store: str, folder: Path) -> str:
    """The store of a run that may have been moved together with it."""
    runs_dir = str(data.get("runs_dir", "runs"))
    here, there = expanded(runs_dir) / str(data.get("name", "")), expanded(store)
    if is_uri(store) or not (there.is_absolute() and here.is_absolute()) or there.exists():
        return store
    common = Path(os.path.commonpath([here, there]))
    below = here.relative_to(common).parts
    if not below or folder.parts[-len(below) :] != below:
        return store
    beside = Path(*folder.parts[: -len(below)]) / there.relative_to(common)
    return str(beside) if beside.exists() else store


def _still_there(data: dict[str, Any], base: Path, made: Path) -> dict[str, Any]:
    """``data`` with absolute paths to what stayed in the folder ``made`` when the run was moved."""
    source, sweep = dict(data.get("source") or {}), dict(data.get("sweep") or {})
    for key in ("model", "dataset"):
        value = source.get(key)
        if not isinstance(value, str) or _exists(path_in(base, value)):
            continue
        if _exists(path_in(made, value)):
            source[key] = str(path_in(made, value))
    known = sweep.get("warm_start") or []
    stayed = [
        str(path_in(made, name)) if not _exists(path_in(base, name)) else name for name in known
    ]
    if known:
        data = {**data, "sweep": {**sweep, "warm_start": stayed}}
    return {**data, "source": source} if source else data


def _is_same(path: Path, folder: Path) -> bool:
    return _exists(path) and _exists(folder) and path.samefile(folder)


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # a name that is too long, or no path at all
        return False
