"""``atlas.json``: the list of the sites of an exported atlas, and what made them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from raysae.errors import UserError
from raysae.records.damage import read_object
from raysae.redaction import redacted_values
from raysae.sites import Site
from raysae.storage.files import write_json

INDEX_FILE = "atlas.json"
FORMAT, SCHEMA_VERSION = "raysae atlas", 1


@dataclass(frozen=True)
class Index:
    """The content of ``atlas.json``."""

    library: str
    """Whose format the SAEs have: ``raysae``, ``saelens``, ``sparsify`` or ``dictionary_learning``."""
    folders: Mapping[Site, str]
    """The folder of each site's SAE, relative to the atlas."""
    failed: Mapping[Site, str] = field(default_factory=dict)
    """The sites without an SAE, each with the reason."""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """Model, data set, hookpoint, context length and digest of the store."""
    source: Mapping[str, Any] | None = None
    """How texts became activations: the recipe's ``source``; None when it is not known."""

    @property
    def states(self) -> dict[Site, tuple[str, str]]:
        """The state and the reason of every site."""
        done = dict.fromkeys(self.folders, ("done", ""))
        return done | {site: ("failed", reason) for site, reason in self.failed.items()}


def write_index(folder: Path, index: Index) -> None:
    """Write ``atlas.json`` into ``folder``. Raises OSError when it cannot be written."""
    sites = [{**site.columns, "folder": name} for site, name in sorted(index.folders.items())]
    failed = [{**site.columns, "reason": why} for site, why in sorted(index.failed.items())]
    content = {
        "format": FORMAT,
        "schema_version": SCHEMA_VERSION,
        "library": index.library,
        "provenance": redacted_values(index.provenance),
        "source": redacted_values(index.source),
        "sites": sites,
        "failed": failed,
    }
    write_json(folder / INDEX_FILE, content)


def read_index(folder: Path) -> Index:
    """The index in ``folder``. Raises UserError when it is damaged or of a newer version, lists a site
    twice, or names a folder outside."""
    path = folder / INDEX_FILE
    found = read_object(path)
    if found.get("format") != FORMAT or found.get("schema_version") != SCHEMA_VERSION:
        raise UserError(
            f"{path}: format {found.get('format')!r}, schema_version {found.get('schema_version')!r}; "
            f"this raysae reads {FORMAT!r}, {SCHEMA_VERSION}; upgrade raysae, or export the atlas again"
        )
    try:
        folders = _by_site(path, found["sites"], "folder")
        failed = _by_site(path, found["failed"], "reason")
        index = Index(
            str(found["library"]), folders, failed, dict(found["provenance"] or {}), found["source"]
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path}: not as an export writes it ({type(error).__name__}: {error}); the file was damaged "
            "or altered; export the atlas again"
        ) from None
    for name in index.folders.values():
        _refuse_outside(path, name)
    return index


def _by_site(path: Path, listed: list[dict[str, Any]], value: str) -> dict[Site, str]:
    found: dict[Site, str] = {}
    for one in listed:
        site = _site(path, one)
        if site in found:
            raise UserError(f"{path}: lists {site} twice; export the atlas again")
        found[site] = str(one[value])
    return found


def _site(path: Path, one: Mapping[str, Any]) -> Site:
    layer, position, hookpoint = one["layer"], one["position"], one.get("hookpoint")
    if type(layer) is not int or layer < 0 or type(position) not in (int, str):
        raise UserError(
            f"{path}: layer {layer!r}, position {position!r}; expected a whole number, and a number or a "
            "name; export the atlas again"
        )
    try:
        return Site(layer, position, hookpoint)
    except (TypeError, ValueError) as error:
        raise UserError(f"{path}: {error}; export the atlas again") from None


def _refuse_outside(path: Path, name: str) -> None:
    plain = PurePosixPath(name)
    if plain.is_absolute() or ".." in plain.parts or "\\" in name or not name.isprintable():
        raise UserError(
            f"{path}: folder {name!r} is not one below {path.parent}; export the atlas again"
        )
