"""The store that an import goes to: what may be added, and what an interrupted import left."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from raysae.activations.manifest import MANIFEST_FILE, Manifest, read_manifest
from raysae.errors import UserError
from raysae.sites import Site
from raysae.storage.files import locked, read_json, remove_folder, remove_temporary, write_json

WORK_FOLDER = ".import"
"""Stands in a store's folder from before the first shard until after the manifest."""
LOCK_FILE, SITES_FILE = "lock", "sites.json"
FLAGS = {"split": "--validation and --test", "non_finite": "--non-finite"}


def existing_store(out: Path) -> Manifest | None:
    """The manifest of the store to add to; None when there is none yet.

    Raises UserError when it is not an imported one, or the folder holds anything else.
    """
    if (out / MANIFEST_FILE).exists():
        manifest = read_manifest(out)
        if manifest.provenance != "imported" or not imports(manifest):
            raise UserError(
                f"{out}: holds a store that was not made by an import (its provenance is "
                f"{manifest.provenance!r}); import into another folder"
            )
        return manifest
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: is a file; name a folder for the store")
    begun = (out / WORK_FOLDER / SITES_FILE).exists()
    strangers = out.exists() and {path.name for path in out.iterdir()} - {WORK_FOLDER}
    if strangers and not begun:
        raise UserError(f"{out}: holds files but no activation store; import into another folder")
    return None


def imports(manifest: Manifest) -> list[dict[str, Any]]:
    """The record of every import into the store."""
    return list(manifest.source.get("imports", []))


def refuse_differences(out: Path, manifest: Manifest, wanted: Mapping[str, Any]) -> None:
    """Raise UserError when the store and what would be added to it differ; None wants nothing."""
    first = imports(manifest)[0]["options"]
    there = {
        **{key: getattr(manifest, key) for key in ("d_in", "dtype", "hookpoint", "split")},
        "model": (manifest.model or {}).get("id"),
        "dataset": (manifest.dataset or {}).get("id"),
        "seed": first["seed"],
    }
    lines = [
        f"  {key}: the store has {there[key]}, this import {value}"
        + (f" ({FLAGS.get(key, '--' + key)})" if key != "d_in" else "")
        for key, value in wanted.items()
        if value is not None and value != there[key]
    ]
    if lines:
        raise UserError(
            f"{out}: sites can be added only when they are of the store's kind; import into another "
            "folder, or with the store's options\n" + "\n".join(lines)
        )


def refuse_sites(out: Path, manifest: Manifest | None, sites: list[Site]) -> None:
    """Raise UserError when the store has one of the sites already."""
    there = {entry.site for entry in manifest.sites} if manifest else set()
    twice = [str(site) for site in sites if site in there]
    if twice:
        raise UserError(
            f"{out}: the store has {twice[0]} already"
            + (f" (and {len(twice) - 1} more of these sites)" if len(twice) > 1 else "")
            + "; nothing is overwritten: import into another folder, or name another --layer or "
            "--position"
        )


@contextmanager
def taking_in(out: Path, sites: list[Site]) -> Iterator[Manifest | None]:
    """The store as it is now, for the block to write ``sites`` and the manifest; no other import
    gets at it meanwhile. What an interrupted import left is removed first.

    Raises UserError when another process is at it, or the store has one of the sites by now.
    """
    work = out / WORK_FOLDER
    work.mkdir(parents=True, exist_ok=True)
    with locked(work / LOCK_FILE, "this store", "import into another folder"):
        manifest = existing_store(out)
        refuse_sites(out, manifest, sites)
        _clear(out, manifest, sites)
        write_json(work / SITES_FILE, sorted(site.folder for site in sites))
        yield manifest
        for name in (SITES_FILE, LOCK_FILE):
            (work / name).unlink()
        work.rmdir()


def _clear(out: Path, manifest: Manifest | None, sites: list[Site]) -> None:
    """Remove the files of sites that no manifest lists: an interrupted import's, and where ours go."""
    kept = {entry.site.folder for entry in manifest.sites} if manifest else set()
    marker = out / WORK_FOLDER / SITES_FILE
    begun = read_json(marker) if marker.exists() else []
    for folder in {*_site_folders(begun), *(site.folder for site in sites)} - kept:
        remove_folder(out / folder)
    remove_temporary(out)


def _site_folders(names: list[Any]) -> list[str]:
    folders = []
    for name in names:
        try:
            folders.append(Site.of_folder(str(name)).folder)
        except ValueError:
            continue
    return folders
