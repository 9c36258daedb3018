"""Folders whose paths hold characters that a library takes for a pattern, under a plain path."""

import os
import tempfile
from functools import cache
from pathlib import Path

MEANINGFUL = frozenset("[]{}*?!:#%~\\$&|<>\"'`^;@()")
"""Characters that are more than themselves to some library that takes a path, a pattern or a URL."""


def plain_folder(folder: str) -> str:
    """The folder; or one with links to its files, if its path holds characters such as ``[`` or ``*``.

    The folder with the links is removed when this process ends.
    """
    path = os.path.realpath(folder)
    if path.isprintable() and not MEANINGFUL.intersection(path):
        return folder
    return _with_links(path)


@cache
def _with_links(folder: str) -> str:
    top = Path(_temporary().name) / str(len(os.listdir(_temporary().name)))
    for place, folders, files in os.walk(folder):
        there = top / os.path.relpath(place, folder)
        there.mkdir(parents=True)
        linked = [name for name in folders if os.path.islink(os.path.join(place, name))]
        for name in [*files, *linked]:
            (there / name).symlink_to(os.path.join(place, name))
    return str(top)


@cache
def _temporary() -> "tempfile.TemporaryDirectory[str]":
    return tempfile.TemporaryDirectory(prefix="raysae-texts-")
