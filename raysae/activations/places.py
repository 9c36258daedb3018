"""The files that a manifest lists: each must be there, inside the store, and listed once."""

import os
import stat
from collections.abc import Iterable
from pathlib import Path

from raysae.activations.manifest import Manifest, SequencesEntry, ShardEntry
from raysae.activations.store_files import StoreFiles
from raysae.errors import UserError
from raysae.storage.remote_files import RemoteFiles
from raysae.storage.untrusted import usable_path


def files_of(manifest: Manifest) -> Iterable[ShardEntry | SequencesEntry]:
    """Every file that the manifest lists."""
    for entry in manifest.sites:
        yield from entry.shards
    yield from manifest.sequences


def check_places(files: StoreFiles, manifest: Manifest) -> None:
    """Raise UserError when a file is missing, of another size, outside the store, or there twice.

    At a URI the sizes are those of the listing; no file is opened.
    """
    if isinstance(files, RemoteFiles):
        for file in files_of(manifest):
            there = files.file(file.file)
            _refuse_other_size(str(there), there.is_file() and there.size(), file.bytes)
    if files.folder is not None:
        _check_folder(files.folder, manifest)


def _check_folder(root: Path, manifest: Manifest) -> None:
    places: dict[str, str] = {}
    within, folders = os.path.realpath(root), dict[str, str]()
    for file in files_of(manifest):
        path = root / file.file
        _check_size(path, file.bytes)
        place = _real_place(str(path), folders)
        _check_inside(within, path, place)
        if (other := places.setdefault(place, file.file)) != file.file:
            raise UserError(
                f"{path}: is a link to {other}, so its rows would count twice; make the store again"
            )


def _real_place(path: str, folders: dict[str, str]) -> str:
    """Where a file lies once links are followed; ``folders`` keeps that of the folders seen so far."""
    folder, name = os.path.split(path)
    if folder not in folders:
        folders[folder] = os.path.realpath(folder)
    return os.path.realpath(path) if os.path.islink(path) else os.path.join(folders[folder], name)


def _check_inside(root: str, path: Path, place: str) -> None:
    """Raise UserError when a link leads out of the store: it could reach files of other people."""
    if not Path(place).is_relative_to(root):
        raise UserError(
            f"{path}: is a link to {place}, outside the store; copy the store with the files "
            "that its links lead to (cp -rL)"
        )


def _check_size(path: Path, expected: int) -> None:
    try:
        found = os.stat(usable_path(path))
    except (FileNotFoundError, NotADirectoryError):
        _refuse_other_size(str(path), False, expected)
    else:
        _refuse_other_size(str(path), stat.S_ISREG(found.st_mode) and found.st_size, expected)


def _refuse_other_size(path: str, found: int, expected: int) -> None:
    """``found`` is False for a file that is not there."""
    if found is False:
        raise UserError(f"{path}: missing, though the manifest lists it; make the store again")
    if found != expected:
        raise UserError(
            f"{path}: {found} bytes, the manifest has {expected}: the shard is truncated or "
            "altered; make the store again"
        )
