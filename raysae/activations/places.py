"""The files that a manifest lists: each must be there, inside the store, and listed once."""

from collections.abc import Iterable
from pathlib import Path

from raysae.activations.manifest import Manifest, SequencesEntry, ShardEntry
from raysae.errors import UserError
from raysae.storage.untrusted import usable_path


def files_of(manifest: Manifest) -> Iterable[ShardEntry | SequencesEntry]:
    """Every file that the manifest lists."""
    for entry in manifest.sites:
        yield from entry.shards
    yield from manifest.sequences


def check_places(root: Path, manifest: Manifest) -> None:
    """Raise UserError when a file is missing, of another size, outside the store, or there twice."""
    places: dict[Path, str] = {}
    resolved = root.resolve()
    for file in files_of(manifest):
        path = root / file.file
        _check_size(path, file.bytes)
        _check_inside(resolved, path)
        if (other := places.setdefault(path.resolve(), file.file)) != file.file:
            raise UserError(
                f"{path}: is a link to {other}, so its rows would count twice; make the store again"
            )


def _check_inside(root: Path, path: Path) -> None:
    """Raise UserError when a link leads out of the store: it could reach files of other people."""
    if not path.resolve().is_relative_to(root):
        raise UserError(
            f"{path}: is a link to {path.resolve()}, outside the store; copy the store with the files "
            "that its links lead to (cp -rL)"
        )


def _check_size(path: Path, expected: int) -> None:
    if not usable_path(path).is_file():
        raise UserError(f"{path}: missing, though the manifest lists it; make the store again")
    found = path.stat().st_size
    if found != expected:
        raise UserError(
            f"{path}: {found} bytes, the manifest has {expected}: the shard is truncated or "
            "altered; make the store again"
        )
