"""Where a Ray that is started here has its session: fit for its sockets, and closed to other users."""

import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from raysae.console.board import console
from raysae.errors import UserError
from raysae.storage.private import exchanged_by, flaw, fresh_folder, make_private, temporary_name

LONGEST_SOCKET = 107 if sys.platform == "linux" else 103
"""Bytes that the path of a socket may have."""
IN_THE_FOLDER = len("/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store.1")
"""Bytes of the longest path of a socket in Ray's folder."""
PLAIN = r"[A-Za-z0-9/._+-]+"
"""Ray writes the folder into ASCII files and command lines."""
INNER = "ray"
"""Ray's own folder, which it opens to all users, in one that is closed to them."""
OPEN_TO_OTHERS = 0o077
OTHERS = ("/tmp", "/var/tmp", "/dev/shm")


def session_options() -> dict[str, str]:
    """The option of ``ray.init`` that names Ray's folder: one that only this user can reach.

    It is in ``session_folder()``, or where that has no place for it in another temporary folder. Raises
    UserError when there is none.
    """
    chosen = session_folder().get("_temp_dir") or _asked()[1]
    for parent in map(Path, (chosen, *OTHERS)):
        closed = _closed_folder(parent)
        if closed is not None:
            return {"_temp_dir": str(closed / INNER)}
    raise UserError(
        f"{chosen}, {', '.join(OTHERS)}: none of them can hold a folder that only this user can enter, "
        "which Ray's session needs; set RAY_TMPDIR to a folder of your own (chmod 700)"
    )


def session_folder() -> dict[str, str]:
    """The option of ``ray.init`` for the folder of temporary files; empty when that asked for is fit.

    Ray takes RAY_TMPDIR, else TMPDIR, else /tmp. When that cannot hold its sockets, another folder of
    this user is taken, and a line says so. Raises UserError when there is none.
    """
    name, asked = _asked()
    reason = unfit(Path(asked), f"/{INNER}")
    if reason is None:
        return {}
    for folder in _others():
        if unfit(folder) is None and folder.stat().st_uid == os.getuid():
            console.print(
                f"Ray's session is in {folder}, as {name} {asked!r} {reason}", style="dim"
            )
            return {"_temp_dir": str(folder)}
    raise UserError(
        f"{name} is {asked!r}, which {reason}, and {', '.join(OTHERS)} cannot be written; set "
        f"RAY_TMPDIR to a folder of at most {LONGEST_SOCKET - IN_THE_FOLDER - len(INNER) - 1} plain "
        "characters that you can write to"
    )


def unfit(folder: Path, below: str = "") -> str | None:
    """Why Ray cannot have its session in ``folder``, as the end of a sentence; None when it can.

    With ``below``, the session is in that folder in ``folder``. The folder is created when it is missing.
    """
    reason = _unfit_name(f"{folder}{below}")
    if reason is not None:
        return reason
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        return f"cannot be used ({error.strerror})"
    return None if os.access(folder, os.W_OK | os.X_OK) else "cannot be written"


def _unfit_name(name: str) -> str | None:
    if len(os.fsencode(name)) + IN_THE_FOLDER > LONGEST_SOCKET:
        return f"is too long for Ray's sockets, whose paths have at most {LONGEST_SOCKET} bytes"
    if not re.fullmatch(PLAIN, name):
        return "has characters that Ray does not take in its paths"
    return None if os.path.isabs(name) else "is not absolute"


def _asked() -> tuple[str, str]:
    """The variable that names the folder of temporary files, and the folder."""
    name = "RAY_TMPDIR" if "RAY_TMPDIR" in os.environ else "TMPDIR"
    return name, os.environ.get(name, "/tmp") or "/tmp"


def _closed_folder(parent: Path) -> Path | None:
    """A folder that only this user can enter: ``parent`` itself, the usual one in it, or a new one.

    None when there can be none, or its path would be too long.
    """
    for folder in (parent, parent / temporary_name()):
        if _is_closed(folder) and _unfit_name(f"{folder}/{INNER}") is None:
            return folder
    try:
        folder = fresh_folder(str(parent))
    except OSError:
        return None
    fits = _unfit_name(f"{folder}/{INNER}") is None
    return folder if fits and exchanged_by(folder) is None else None


def _is_closed(folder: Path) -> bool:
    """Whether only this user can enter ``folder``, which is created if it is missing."""
    try:
        make_private(folder)
        return flaw(folder) is None and not folder.stat().st_mode & OPEN_TO_OTHERS
    except OSError:
        return False


def _others() -> Iterator[Path]:
    """Folders of this user's own, which other users cannot have prepared."""
    for parent in OTHERS:
        yield Path(parent) / f"ray-{os.getuid()}"
