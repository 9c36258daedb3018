"""Where the local copy of a URI is: one folder for each, in a cache folder that is this user's own."""

import hashlib
import json
import os
import posixpath
import re
from pathlib import Path

from raysae.errors import UserError
from raysae.storage.private import flaw, is_own_file

HOME_FILE = ".raysae-home"
"""The file in a local copy that records its URI."""
CACHE_VARIABLE = "RAYSAE_CACHE"
"""The environment variable that names the folder of the local copies."""


def is_uri(name: str | None) -> bool:
    """Whether ``name`` is a URI and not a folder's path."""
    return name is not None and re.match(r"[a-z][a-z0-9+.-]+://", name) is not None


def join(folder: str, name: str) -> str:
    """The path or URI of ``name`` in ``folder``; a URI's ``?options`` stay at the end."""
    if not is_uri(folder):
        return f"{folder}/{name}"
    base, mark, options = folder.partition("?")
    return f"{base.rstrip('/')}/{name}{mark}{options}"


def split(uri: str) -> tuple[str, str]:
    """The URI of the parent folder, and the name in it: the inverse of ``join``."""
    base, mark, options = uri.partition("?")
    parent, name = posixpath.split(base.rstrip("/"))
    return f"{parent}{mark}{options}", name


def local_copy(uri: str) -> Path:
    """The folder of this node's copy of ``uri``, below ``RAYSAE_CACHE`` or else ~/.cache/raysae.

    Two URIs have two folders: one that is not spelt out plainly, or has ``?options``, has a hash of the
    whole URI in its folder's name.
    """
    base, _, options = uri.partition("?")
    scheme, _, rest = base.partition("://")
    parts = [part for part in rest.split("/") if part not in ("", ".", "..")]
    plain = rest.rstrip("/").removeprefix("/" if scheme == "file" else "")
    if parts and (options or plain != "/".join(parts)) and ".." not in rest.split("/"):
        digest = hashlib.sha256(one_spelling(uri).encode()).hexdigest()
        parts[-1] = f"{parts[-1]}~{digest[:12]}"
    return _cache_folder().joinpath(scheme, *parts)


def copied_uri(folder: Path) -> str | None:
    """The URI whose local copy ``folder`` is; None when it is none.

    Believed is only what this user's own cache folder says, and what fits the folder's name.
    """
    if not folder.is_relative_to(_cache_folder()) or flaw(folder) is not None:
        return None
    return home(folder)


def _cache_folder() -> Path:
    """The folder of the local copies."""
    named = os.environ.get(CACHE_VARIABLE) or "~/.cache/raysae"
    try:
        return Path(named).expanduser().absolute()
    except RuntimeError:
        raise UserError(
            f"{named}: this user has no home folder; name a folder for local copies in "
            f"{CACHE_VARIABLE}"
        ) from None


def check_private(local: Path) -> None:
    """Raise UserError when others could change the cache folder, or the copy in it."""
    cache = _cache_folder()
    for folder in (cache, local):
        found = flaw(folder)
        if found is not None:
            raise UserError(
                f"{folder}: {found}, and what is there decides what is sent to a URI; the folder of "
                "local copies must belong to this user and be writable by nobody else "
                f"(chmod -R go-w {cache}), or name another in {CACHE_VARIABLE}"
            )


def home(local: Path) -> str | None:
    """The URI that the file in the local copy records; None when it is not to be believed."""
    marker = local / HOME_FILE
    if not is_own_file(marker):
        return None
    try:
        uri = json.loads(marker.read_text(encoding="utf-8"))["uri"]
        return one_spelling(uri) if is_uri(uri) and local_copy(uri) == local else None
    except (ValueError, LookupError, TypeError, OSError):
        return None


def refuse_other_copy(local: Path, uri: str) -> None:
    """Raise UserError when ``local`` is the copy of another URI than ``uri``."""
    other = home(local)
    if other is not None:
        raise UserError(
            f"{local}: is the local copy of {other.partition('?')[0]}, not of "
            f"{uri.partition('?')[0]}; remove it when its results are there, or name another folder in "
            f"{CACHE_VARIABLE}"
        )


def one_spelling(uri: str) -> str:
    """``uri`` without slashes at the end of its path."""
    base, mark, options = uri.partition("?")
    return f"{base.rstrip('/')}{mark}{options}"
