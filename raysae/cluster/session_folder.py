"""Where a Ray that is started here has its session: a folder short and plain enough for its sockets."""

import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from raysae.console.board import console
from raysae.errors import UserError

LONGEST_SOCKET = 107 if sys.platform == "linux" else 103
"""Bytes that the path of a socket may have."""
IN_THE_FOLDER = len("/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store.1")
"""Bytes of the longest path of a socket in Ray's folder."""
PLAIN = r"[A-Za-z0-9/._+-]+"
"""Ray writes the folder into ASCII files and command lines."""
OTHERS = ("/tmp", "/var/tmp", "/dev/shm")


def session_folder() -> dict[str, str]:
    """The option of ``ray.init`` that names Ray's folder; empty when its own choice can be used.

    Ray takes RAY_TMPDIR, else TMPDIR, else /tmp. When that cannot hold its sockets, another folder of
    this user is taken, and a line says so. Raises UserError when there is none.
    """
    name = "RAY_TMPDIR" if "RAY_TMPDIR" in os.environ else "TMPDIR"
    asked = os.environ.get(name, "/tmp") or "/tmp"
    reason = unfit(Path(asked) / "ray")
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
        f"RAY_TMPDIR to a folder of at most {LONGEST_SOCKET - IN_THE_FOLDER - len('/ray')} plain "
        "characters that you can write to"
    )


def unfit(folder: Path) -> str | None:
    """Why Ray cannot have its session in ``folder``, as the end of a sentence; None when it can.

    The folder is created when it is missing.
    """
    if len(os.fsencode(folder)) + IN_THE_FOLDER > LONGEST_SOCKET:
        return f"is too long for Ray's sockets, whose paths have at most {LONGEST_SOCKET} bytes"
    if not re.fullmatch(PLAIN, str(folder)):
        return "has characters that Ray does not take in its paths"
    if not folder.is_absolute():
        return "is not absolute"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        return f"cannot be used ({error.strerror})"
    return None if os.access(folder, os.W_OK | os.X_OK) else "cannot be written"


def _others() -> Iterator[Path]:
    """Folders of this user's own, which other users cannot have prepared."""
    for parent in OTHERS:
        yield Path(parent) / f"ray-{os.getuid()}"
