"""Folders stored at a URI: each node works in a local copy and uploads what it has finished.

A URI is ``s3://bucket/runs``, ``gs://``, ``file://``, or any other that fsspec knows. The local copies
are in the cache folder. ``bind`` connects a local copy to its URI, for this process. After that,
``push``, ``pull`` and ``discard`` take any path inside the copy. For other paths they do nothing, so
that callers need not check. What lies in a folder never decides where its files are sent.
"""

import fcntl
import json
import os
import socket
import tarfile
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from raysae.errors import UserError
from raysae.storage.file_systems import place_of, reached, refuse_unusable
from raysae.storage.files import (
    open_own,
    remove_folder,
    remove_temporary,
    replacing_folder,
    write_text,
)
from raysae.storage.local_copies import (
    CACHE_VARIABLE,
    HOME_FILE,
    check_private,
    home,
    is_uri,
    join,
    local_copy,
    one_spelling,
    refuse_other_copy,
    split,
)
from raysae.storage.private import make_private
from raysae.storage.remote_folder import ARCHIVE, RemoteFolder

__all__ = [
    "ARCHIVE", "CACHE_VARIABLE", "CHECKPOINT", "CLAIM_FILE", "CLAIM_SECONDS", "HOME_FILE", "bind",
    "claimed", "discard", "discard_archive", "fetched", "hand_over", "is_copy", "is_uri", "join",
    "local_copy", "move", "pull", "pull_archive", "push", "push_archive", "remove", "shown",
    "split", "uri_of",
]  # fmt: skip

CHECKPOINT = ".training"
"""Suffix of a folder that is uploaded as one archive."""
CLAIM_FILE, CLAIM_SECONDS = ".driver", 120
"""The file by which a machine claims a run at a URI, and how long it counts without renewal."""
_bound: dict[Path, str] = {}
"""The local copies that this process works in, each with its URI."""


def bind(uri: str) -> Path:
    """The folder of this node's copy of ``uri``, created if it is missing.

    Raises UserError when ``uri`` cannot be reached, when the folder cannot be written or is the copy of
    another URI, or when others could change what is in it.
    """
    refuse_unusable(uri)
    local = local_copy(uri)
    if _bound.get(local) == uri and (local / HOME_FILE).is_file():
        return local
    reached(uri)
    try:
        make_private(local)
        check_private(local)
        if home(local) != one_spelling(uri):
            refuse_other_copy(local, uri)
            write_text(local / HOME_FILE, json.dumps({"uri": one_spelling(uri)}))
    except OSError as error:
        raise UserError(
            f"{local}: cannot write the local copy of {uri} there ({error.strerror}); "
            f"name another folder in {CACHE_VARIABLE}"
        ) from None
    _bound[local] = uri
    return local


def is_copy(path: Path) -> bool:
    """Whether ``path`` is in a local copy that this process works in."""
    return _copy_of(path) is not None


def push(path: Path, last: str = "") -> None:
    """Upload a file, or the new files in a folder and all its subfolders.

    Hidden files are left out, and folders that ``push_archive`` uploads. The file named ``last`` is
    uploaded after all others, so that its presence shows that the folder is complete. Raises UserError
    when a file cannot be uploaded; the local files stay.
    """
    remote = _remote_of(path)
    if remote is None or not path.exists():
        return
    files = [path] if path.is_file() else sorted(_files(path), key=lambda f: f.name == last)
    for file in files:
        remote.upload_new(file)


def pull(path: Path, last: str = "") -> bool:
    """Download a file, or the files of a folder that are missing or older here.

    The file named ``last`` is downloaded after all others. Returns whether the URI has any such file.
    """
    remote = _remote_of(path)
    return remote is not None and remote.download(path, last)


def move(path: Path, to: Path) -> None:
    """Move a file or folder within the same local copy, here and at its URI.

    Raises UserError when the moved files cannot be uploaded.
    """
    remote = _remote_of(path)
    to.parent.mkdir(parents=True, exist_ok=True)
    os.replace(path, to)
    if remote is not None:
        push(to)
        remote.remove_all(path)


def discard(path: Path) -> None:
    """Remove the file or folder at the URI whose local copy is ``path``."""
    remote = _remote_of(path)
    if remote is not None:
        remote.remove_all(path)


def remove(path: Path) -> None:
    """Remove a file or folder here and, of a local copy, at its URI."""
    if path.is_dir():
        remove_folder(path)
    else:
        path.unlink(missing_ok=True)
    discard(path)


def uri_of(path: Path) -> str | None:
    """The URI of a path in a local copy that this process works in; None for other paths."""
    found = _copy_of(path)
    if found is None:
        return None
    folder, uri = found
    name = path.relative_to(folder).as_posix()
    return uri if name == "." else join(uri, name)


def shown(path: Path) -> str:
    """A path for people: of a local copy, the URI without its ``?options``."""
    uri = uri_of(path)
    return str(path) if uri is None else place_of(uri)


def fetched(uri: str) -> Path:
    """This node's complete copy of the folder at ``uri``.

    Other processes on this node that call this wait until the download is done. Raises UserError when
    ``uri`` cannot be reached.
    """
    folder = bind(uri)
    with open_own(folder / ".fetching") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        remove_temporary(folder)
        pull(folder)
    return folder


def hand_over(file: Path) -> None:
    """Upload a finished file of a local copy, and remove it here: it is not needed any more.

    For other paths nothing is done. Raises UserError when it cannot be uploaded; then it stays.
    """
    remote = _remote_of(file)
    if remote is not None:
        remote.upload(file)
        file.unlink()


def push_archive(folder: Path) -> None:
    """Upload a folder as one archive, which appears whole or not at all.

    Raises UserError when it cannot be uploaded.
    """
    remote = _remote_of(folder)
    if remote is None:
        return
    with tempfile.NamedTemporaryFile(suffix=".tar") as archive:
        with tarfile.open(archive.name, "w") as tar:
            tar.add(folder, arcname=".")
        remote.upload(Path(archive.name), remote.place(_archive(folder)))


def pull_archive(folder: Path) -> None:
    """Download the archive of ``push_archive`` if ``folder`` is missing; ignore a damaged archive."""
    remote = _remote_of(folder)
    if remote is None or folder.exists() or not remote.download(_archive(folder)):
        return
    try:
        with tarfile.open(_archive(folder)) as tar, replacing_folder(folder) as temporary:
            tar.extractall(temporary, filter="data")
    except (tarfile.TarError, OSError):
        pass
    finally:
        _archive(folder).unlink(missing_ok=True)


def discard_archive(folder: Path) -> None:
    """Remove the archive of ``push_archive`` at the URI."""
    remote = _remote_of(folder)
    if remote is not None:
        remote.remove(_archive(folder))


@contextmanager
def claimed(
    folder: Path, what: str = "this run", otherwise: str = "take another name=NAME"
) -> Iterator[None]:
    """Claim a folder at a URI for this machine during the block.

    The claim is a file there, which a thread renews. Raises UserError, with ``what`` the other works on
    and what to do ``otherwise``, when another machine renewed its claim less than ``CLAIM_SECONDS`` ago.
    """
    remote = _remote_of(folder)
    if remote is None:
        yield
        return
    claim = folder / CLAIM_FILE
    write_text(claim, f"process {os.getpid()} on {socket.gethostname()}")
    age = remote.age(claim)
    held = age is not None and age < CLAIM_SECONDS
    if age is not None and age < 0:  # the clock there was set back: see whether it is renewed
        held = remote.changes(claim, CLAIM_SECONDS / 2)
    other = remote.text(claim) if held else claim.read_text()
    if other.split(" on ")[-1] != socket.gethostname():  # processes of one machine have a lock
        raise UserError(
            f"{remote.uri}: {other} is working on {what}; wait for it, stop it, or {otherwise} "
            f"(the claim of a killed process ends after {CLAIM_SECONDS} s)"
        )
    remote.remove_leftovers()
    remote.upload(claim)
    ended = threading.Event()

    def renew() -> None:
        while not ended.wait(CLAIM_SECONDS / 4):
            with suppress(UserError):
                remote.upload(claim)

    renewer = threading.Thread(target=renew, daemon=True)
    renewer.start()
    try:
        yield
    finally:
        ended.set()
        renewer.join()
        claim.unlink(missing_ok=True)
        remote.remove(claim)


def _archive(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}{ARCHIVE}")


_remotes: dict[tuple[Path, str], RemoteFolder] = {}


def _remote_of(path: Path) -> RemoteFolder | None:
    found = _copy_of(path)
    if found is None:
        return None
    if found not in _remotes:
        _remotes[found] = RemoteFolder(*found, *reached(found[1]))
    return _remotes[found]


def _copy_of(path: Path) -> tuple[Path, str] | None:
    """The folder of the local copy that contains ``path``, and its URI; None when there is none."""
    return next(((one, _bound[one]) for one in (path, *path.parents) if one in _bound), None)


def _files(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or path.suffix == CHECKPOINT:
            continue
        if path.is_dir():
            yield from _files(path)
        elif path.is_file():
            yield path
