"""What the operating system refuses, in words: a full disk, a folder that may not be written."""

import errno
import os
import pwd
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from raysae.errors import in_one_line
from raysae.storage.leftovers import STAMPED

IN_BRACKETS = re.compile(r"\[[Ee]rrno (\d+)\]|\(os error (\d+)\)")
"""How pyarrow and safetensors write the number of an error in a message."""
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
READ_ONLY = (errno.EACCES, errno.EPERM, errno.EROFS)
ADVICE = {
    errno.ENOSPC: "free space there",
    errno.EDQUOT: "your quota is used up: remove files of yours there, or ask for more",
    errno.EFBIG: "the size of files is limited there (see ulimit -f): lift the limit",
    errno.EROFS: "nothing can be written there: give another folder, or copy this one to a disk of yours",
    errno.EIO: "the disk or its connection failed: check it (dmesg), or give another folder",
    errno.ESTALE: "the network folder was replaced or lost: mount it again",
    errno.ENOENT: "it was removed or never existed: check the path, and do not remove what is in use",
    errno.ENOTDIR: "a folder was expected there: remove or rename the file",
    errno.EISDIR: "a file was expected there: remove or rename the folder",
    errno.EMFILE: "this process may open no more files (see ulimit -n): raise the limit",
    errno.ENAMETOOLONG: "give a shorter name",
    errno.ELOOP: "links there lead in a circle: remove them",
}


def in_words(error: OSError) -> str:
    """One sentence: the path, what the system said, and what to do."""
    number = number_of(error)
    where = path_of(error)
    said = os.strerror(number) if number is not None else " ".join(str(error).split())
    told = f"{where}: {said}" if where is not None else said
    advice = _advice(number, where)
    return f"{told}; {advice}" if advice else told


def reason_in_words(error: BaseException) -> str:
    """Any error in one line; what the system refused as a sentence that says what to do."""
    return in_words(error) if isinstance(error, OSError) else in_one_line(error)


@contextmanager
def as_os_error(path: Path) -> Iterator[None]:
    """Raise OSError where safetensors, which has errors of its own, cannot write ``path``."""
    from safetensors import SafetensorError

    try:
        yield
    except SafetensorError as error:
        found = IN_BRACKETS.search(str(error))
        number = int(found[1] or found[2]) if found else errno.EIO
        raise OSError(number, os.strerror(number) if found else str(error), str(path)) from None


def number_of(error: OSError) -> int | None:
    """The system's number for the error, also where a library put it in its message only."""
    found = IN_BRACKETS.search(str(error))
    if found is not None:
        return int(found[1] or found[2])
    return error.errno


def path_of(error: OSError) -> Path | None:
    """The file or folder that the error is about; for a partial file, the one that it was to become."""
    name = error.filename2 or error.filename
    if name is None or isinstance(name, int):
        return None
    parts = []
    for part in Path(os.fsdecode(name)).parts:
        found = STAMPED.fullmatch(part)
        parts.append(found["name"] if found else part)
    return Path(*parts)


def _advice(number: int | None, where: Path | None) -> str:
    if number in (errno.EACCES, errno.EPERM):
        return f"{_owner(where)}ask for the permission, give another folder, or work on a copy"
    return ADVICE.get(number, "") if number is not None else ""


def _owner(where: Path | None) -> str:
    """Whose the file or folder is, or the nearest folder above it that exists."""
    for path in (where, *where.parents) if where is not None else ():
        with suppress(OSError):
            return (
                f"{path} belongs to {user(path.stat().st_uid)}, and you are {user(os.geteuid())}: "
            )
    return ""


def user(number: int) -> str:
    """A user's name; the number where it has no name."""
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return f"user {number}"
