"""Folders and files that only this user can change: code, copies and Ray's sockets lie in no others."""

import atexit
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path

WRITABLE_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH
MOST_LINKS = 40
"""Links on the way to a folder, at most."""


def flaw(folder: Path) -> str | None:
    """Why others could change what is in ``folder``, as the end of a sentence; None when they cannot.

    The folder must exist and belong to this user, and be writable by nobody else. Nobody else may be
    able to put another in its place: see ``exchanged_by``.
    """
    try:
        found = folder.lstat()
    except OSError as error:
        return f"cannot be used ({error.strerror})"
    if not stat.S_ISDIR(found.st_mode):
        return "is a link or no folder"
    if found.st_uid != os.getuid():
        return f"belongs to another user (uid {found.st_uid})"
    if found.st_mode & WRITABLE_BY_OTHERS:
        return "can be written by other users"
    other = exchanged_by(folder)
    return None if other is None else f"is below {other}, which other users can change"


def exchanged_by(path: Path) -> Path | None:
    """The folder or link above ``path`` through which others could put another thing in its place.

    Such a folder belongs to another user, or others may write to it and it has no sticky bit. Links on
    the way are followed. None when there is none.
    """
    for place in _way_to(path.absolute().parent):
        found = place.lstat()
        loose = found.st_mode & WRITABLE_BY_OTHERS and not found.st_mode & stat.S_ISVTX
        if found.st_uid not in _trusted() or (loose and not stat.S_ISLNK(found.st_mode)):
            return place
    return None


def is_own_file(file: Path) -> bool:
    """Whether ``file`` is a regular file, no link, that this user owns and nobody else may write."""
    try:
        found = file.lstat()
    except OSError:
        return False
    own = stat.S_ISREG(found.st_mode) and found.st_uid == os.getuid()
    return own and not found.st_mode & WRITABLE_BY_OTHERS


def private_folder(*wanted: Path) -> Path:
    """The first of ``wanted`` that only this user can change, created if it is missing.

    When there is none: a new temporary folder, which is removed when this process ends. Raises OSError
    when that cannot be made.
    """
    for folder in wanted:
        try:
            make_private(folder)
        except OSError:
            continue
        if flaw(folder) is None and os.access(folder, os.W_OK | os.X_OK):
            return folder
    return fresh_folder(tempfile.gettempdir())


def make_private(folder: Path) -> None:
    """Create ``folder`` and the missing folders above it, closed to others whatever the umask.

    What exists stays as it is. Raises OSError when one cannot be made.
    """
    missing = [place for place in (folder, *folder.parents) if not os.path.lexists(place)]
    for place in reversed(missing):
        place.mkdir(mode=0o700, exist_ok=True)


def temporary_name() -> str:
    """The name of this user's folder among the temporary files."""
    return f"raysae-{os.getuid()}"


@cache
def fresh_folder(parent: str) -> Path:
    """A new folder in ``parent`` that only this user can enter; one for all callers in this process.

    It is removed when this process ends. Raises OSError when it cannot be made.
    """
    folder, process = Path(tempfile.mkdtemp(prefix="raysae-", dir=parent)), os.getpid()

    def remove() -> None:
        if os.getpid() == process:  # not in a forked child
            shutil.rmtree(folder, ignore_errors=True)

    atexit.register(remove)
    return folder


@cache
def _trusted() -> frozenset[int]:
    """Users who can change everything anyway; in a container ``/`` may belong to another than root."""
    return frozenset({0, os.getuid(), Path("/").stat().st_uid})


def _way_to(folder: Path) -> Iterator[Path]:
    """``folder`` and all above it; where one is a link, also the place that it leads to."""
    places, links = [folder], 0
    while places:
        place = places.pop()
        for here in (place, *place.parents):
            yield here
            if here.is_symlink() and links < MOST_LINKS:
                links += 1
                places.append(here.parent / os.readlink(here))
