"""The store that an import writes to: checks of what may be added, and removal of partial files."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from raysae.activations.manifest import MANIFEST_FILE, Manifest, SiteEntry, manifest_of
from raysae.activations.store_files import LocalFile, LocalFiles, StoreFiles, files_at
from raysae.errors import UnfinishedError, UserError
from raysae.sites import Site
from raysae.storage.files import (
    locked,
    read_json,
    refuse_links_outside,
    remove_temporary,
    write_json,
)
from raysae.storage.remote import claimed, pull, push, remove, shown, uri_of
from raysae.storage.trouble import in_words, number_of

WORK_FOLDER = ".import"
"""A folder in the store's folder; it exists from before the first shard until after the manifest."""
LOCK_FILE, SITES_FILE = "lock", "sites.json"
FLAGS = {"split": "--validation and --test", "non_finite": "--non-finite"}


def existing_store(out: Path) -> Manifest | None:
    """The manifest of the store that sites are added to; None when there is no store yet.

    ``out`` is its folder; of a store at a URI, this node's copy. Raises UserError when the store was not
    imported, or the folder holds other files.
    """
    files = _files(out)
    if files.file(MANIFEST_FILE).is_file() or (out / MANIFEST_FILE).exists():
        manifest = manifest_of(files)
        if manifest.provenance != "imported" or not imports(manifest):
            raise UserError(
                f"{files.place}: holds a store that was not made by an import (its provenance is "
                f"{manifest.provenance!r}); import into another folder"
            )
        return manifest
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: is a file; name a folder for the store")
    marker = out / WORK_FOLDER / SITES_FILE
    if isinstance(files, LocalFiles):
        other_files = out.exists() and bool({path.name for path in out.iterdir()} - {WORK_FOLDER})
    else:
        other_files = bool(files.names())
        pull(marker)
    if other_files and not marker.exists():
        raise UserError(
            f"{files.place}: holds files but no activation store; import into another folder"
        )
    return None


def _files(out: Path) -> StoreFiles:
    """The files of the store whose folder, or local copy, is ``out``."""
    return files_at(uri_of(out) or out)


def imports(manifest: Manifest) -> list[dict[str, Any]]:
    """The record of every import into the store."""
    return list(manifest.source.get("imports", []))


def refuse_differences(out: Path, manifest: Manifest, wanted: Mapping[str, Any]) -> None:
    """Raise UserError when the import's settings differ from the store's. None fits any setting."""
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
            f"{shown(out)}: sites can be added only when they are of the store's kind; import into "
            "another folder, or with the store's options\n" + "\n".join(lines)
        )


def refuse_sites(out: Path, manifest: Manifest | None, sites: list[Site]) -> None:
    """Raise UserError when the store has one of the sites already."""
    there = {entry.site for entry in manifest.sites} if manifest else set()
    twice = [str(site) for site in sites if site in there]
    if twice:
        raise UserError(
            f"{shown(out)}: the store has {twice[0]} already"
            + (f" (and {len(twice) - 1} more of these sites)" if len(twice) > 1 else "")
            + "; nothing is overwritten: import into another folder, or name another --layer or "
            "--position"
        )


@contextmanager
def taking_in(out: Path, sites: list[Site]) -> Iterator[Manifest | None]:
    """Lock the store, so that the block can write ``sites`` and the manifest.

    Yields the store's current manifest; None when there is none yet. Partial files of an interrupted
    import are removed first. Raises UserError when another process imports into the store, or when the
    store already has one of the sites.
    """
    refuse_links_outside(out, "the store")
    work = out / WORK_FOLDER
    work.mkdir(parents=True, exist_ok=True)
    otherwise = "import into another folder"
    with locked(work / LOCK_FILE, "this store", otherwise), claimed(out, "this store", otherwise):
        manifest = existing_store(out)
        refuse_sites(out, manifest, sites)
        _clear(out, manifest, sites)
        write_json(work / SITES_FILE, sorted(site.folder for site in sites))
        push(work / SITES_FILE)
        yield manifest
        for name in (SITES_FILE, LOCK_FILE):
            remove(work / name)
        with suppress(OSError):  # the store is complete; another process may use the folder
            work.rmdir()


def _clear(out: Path, manifest: Manifest | None, sites: list[Site]) -> None:
    """Remove files of sites that the manifest does not list: those of an interrupted import, and those
    in the folders that this import will write."""
    listed = {entry.site.folder for entry in manifest.sites} if manifest else set()
    marker = out / WORK_FOLDER / SITES_FILE
    for folder in {*_site_folders(_noted(marker)), *(site.folder for site in sites)} - listed:
        remove(out / folder)
    remove_temporary(out)


@contextmanager
def unfinished(out: Path) -> Iterator[None]:
    """Raise UnfinishedError for what the block raises: shards may have been written by then."""
    stays = "what the store held before is unchanged, and the same command begins this import again"
    try:
        yield
    except UserError as error:
        raise UnfinishedError(str(error)) from error
    except OSError as error:
        if number_of(error) is None:
            raise
        raise UnfinishedError(f"{in_words(error)}; then {stays}") from error


def refuse_deleted(out: Path, entries: list[SiteEntry]) -> None:
    """Raise UserError when the store's folder, or a shard just written, was deleted meanwhile."""
    files, marker = _files(out), out / WORK_FOLDER / SITES_FILE
    shards = [files.file(shard.file) for entry in entries for shard in entry.shards]
    gone = [path for path in (LocalFile(out, marker), *shards) if not path.is_file()]
    if gone:
        raise UserError(
            f"{files.place}: the folder was deleted, moved or emptied during the import ({gone[0]} is "
            "gone); put it back to keep what it held, or remove it and give the command again"
        )


def _noted(marker: Path) -> list[Any]:
    """The sites of an interrupted import; none when the file that names them is damaged."""
    try:
        found = read_json(marker) if marker.exists() else []
    except UserError:
        return []
    return found if isinstance(found, list) else []


def _site_folders(names: list[Any]) -> list[str]:
    folders = []
    for name in names:
        try:
            folders.append(Site.of_folder(str(name)).folder)
        except ValueError:
            continue
    return folders
