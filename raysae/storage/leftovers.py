"""Names of partial files and folders, and the removal of those that killed processes left.

A partial file for ``NAME`` is ``.NAME.MACHINE-PROCESS-RANDOM.tmp``. Where a file system cannot exchange
two folders, the old one is ``.NAME.MACHINE-PROCESS-RANDOM.old`` for a moment.
"""

import ctypes
import errno
import hashlib
import os
import re
import shutil
import socket
import uuid
from contextlib import suppress
from functools import cache
from pathlib import Path

STAMPED = re.compile(
    r"\.(?P<name>.+)\.(?:(?P<machine>[0-9a-f]{8})-(?P<process>\d+)-)?"
    r"[0-9a-f]{8}(?:[0-9a-f]{24})?\.(?P<kind>tmp|old)"
)
"""The names; those of earlier versions have no machine and no process."""
EXCHANGE, WORKING_FOLDER = 2, -100
"""Linux's RENAME_EXCHANGE and AT_FDCWD."""


def temporary_path(path: Path) -> Path:
    """A new name, beside ``path``, for its partial file or folder."""
    return path.parent / f".{path.name}.{_stamp()}.tmp"


def old_path(path: Path) -> Path:
    """A new name, beside ``path``, for the folder that is being replaced."""
    return path.parent / f".{path.name}.{_stamp()}.old"


def remove_leftovers(folder: Path) -> None:
    """Remove what killed processes left below ``folder``. No link is followed.

    Leftovers of live processes of this machine stay. Those of other machines are removed: the caller
    holds the lock of ``folder``.
    """
    for place, folders, files in os.walk(folder):
        for name in [*folders, *files]:
            if STAMPED.fullmatch(name):
                _clear(Path(place, name))
        folders[:] = [name for name in folders if not STAMPED.fullmatch(name)]


def remove_leftovers_of(path: Path) -> None:
    """Remove what killed processes of this machine left when they wrote ``path``."""
    with suppress(OSError):
        for beside in list(path.parent.iterdir()):
            found = STAMPED.fullmatch(beside.name)
            if found and found["name"] == path.name and found["machine"] == _machine():
                _clear(beside)


def exchange(one: Path, other: Path) -> bool:
    """Exchange two files or folders in one step; False where the system cannot."""
    rename = _renameat2()
    if rename is None:
        return False
    names = os.fsencode(one), os.fsencode(other)
    if rename(WORKING_FOLDER, names[0], WORKING_FOLDER, names[1], EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM):
        return False
    raise OSError(number, os.strerror(number), str(other))


def flush(path: Path) -> None:
    """Wait until a file or folder is on the disk. Raises OSError when the disk refuses."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):  # a file system without flushing
            raise
    finally:
        os.close(handle)


def _clear(path: Path) -> None:
    """Remove a leftover, unless its process is alive; put a replaced folder back if nothing is there."""
    found = STAMPED.fullmatch(path.name)
    assert found is not None
    if found["machine"] == _machine() and _is_alive(int(found["process"])):
        return
    with suppress(OSError):  # of another user, or removed at the same moment
        if found["kind"] == "old" and not path.with_name(found["name"]).exists():
            os.replace(path, path.with_name(found["name"]))
        elif path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def _stamp() -> str:
    return f"{_machine()}-{os.getpid()}-{uuid.uuid4().hex}"


@cache
def _machine() -> str:
    """Eight digits that differ between machines."""
    return hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


@cache
def _renameat2() -> "ctypes._NamedFuncPointer | None":
    """The C library's function; None where it has none."""
    try:
        return ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError):
        return None
