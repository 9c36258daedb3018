"""Folders stored at a URI: each node works in a local copy and uploads what it has finished.

A URI is ``s3://bucket/runs``, ``gs://``, ``file://``, or any other that fsspec knows. The local copies
are in the cache folder. ``bind`` connects a local copy to its URI. After that, ``push``, ``pull`` and
``discard`` take any path inside the copy. For other paths they do nothing, so that callers need not
check.
"""

import fcntl
import json
import os
import posixpath
import re
import socket
import tarfile
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from raysae.errors import UserError
from raysae.storage.files import expanded, replacing, replacing_folder, write_text

HOME_FILE = ".raysae-home"
"""The file in a local copy that records its URI."""
CACHE_VARIABLE = "RAYSAE_CACHE"
"""The environment variable that names the folder of the local copies."""
CHECKPOINT, ARCHIVE = ".training", ".tar"
"""Suffixes of a folder that is uploaded as one archive, and of that archive."""
CLAIM_FILE, CLAIM_SECONDS = ".driver", 120
"""The file by which a machine claims a run at a URI, and how long it counts without renewal."""
_uploaded: dict[Path, tuple[int, int]] = {}
"""Modification time (nanoseconds) and size (bytes) of the files that this process has uploaded."""


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
    """The folder of this node's copy of ``uri``, below ``RAYSAE_CACHE`` or else ~/.cache/raysae."""
    cache = os.environ.get(CACHE_VARIABLE) or "~/.cache/raysae"
    scheme, _, rest = uri.partition("?")[0].partition("://")
    parts = [part for part in rest.split("/") if part not in ("", ".", "..")]
    return expanded(cache).absolute().joinpath(scheme, *parts)


def bind(uri: str) -> Path:
    """The folder of this node's copy of ``uri``, created if it is missing.

    Raises UserError when ``uri`` cannot be reached or the folder cannot be written.
    """
    local = local_copy(uri)
    _filesystem(uri)
    if _copy_of(local) != (local, uri):
        try:
            write_text(local / HOME_FILE, json.dumps({"uri": uri}))
        except OSError as error:
            raise UserError(
                f"{local}: cannot write the local copy of {uri} there ({error.strerror}); "
                f"name another folder in {CACHE_VARIABLE}"
            ) from None
    return local


def is_copy(path: Path) -> bool:
    """Whether ``path`` is in the local copy of a folder at a URI."""
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


def fetched(uri: str) -> Path:
    """This node's complete copy of the folder at ``uri``.

    Other processes on this node that call this wait until the download is done. Raises UserError when
    ``uri`` cannot be reached.
    """
    folder = bind(uri)
    with (folder / ".fetching").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        pull(folder)
    return folder


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
def claimed(folder: Path) -> Iterator[None]:
    """Claim a folder at a URI for this machine during the block.

    The claim is a file there, which a thread renews. Raises UserError when another machine renewed its
    claim less than ``CLAIM_SECONDS`` ago.
    """
    remote = _remote_of(folder)
    if remote is None:
        yield
        return
    claim = folder / CLAIM_FILE
    write_text(claim, f"process {os.getpid()} on {socket.gethostname()}")
    age = remote.age(claim)
    other = remote.text(claim) if age is not None and age < CLAIM_SECONDS else claim.read_text()
    if other.split(" on ")[-1] != socket.gethostname():  # processes of one machine have a lock
        raise UserError(
            f"{remote.uri}: {other} is working on this run; wait for it, stop it, or take another "
            f"name=NAME (the claim of a killed process ends after {CLAIM_SECONDS} s)"
        )
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


class _Remote:
    """The folder at a URI, with its local copy."""

    def __init__(self, local: Path, uri: str):
        self.local, self.uri = local, uri.partition("?")[0]
        self.filesystem, self.root = _filesystem(uri)

    def place(self, path: Path) -> str:
        """The remote path of a local one."""
        return posixpath.join(self.root, *path.relative_to(self.local).parts)

    def upload(self, file: Path, place: str = "") -> None:
        place = place or self.place(file)
        try:
            self.filesystem.create_dir(posixpath.dirname(place), recursive=True)
            with self.filesystem.open_output_stream(place) as out, file.open("rb") as content:
                while block := content.read(1 << 22):
                    out.write(block)
        except OSError as error:
            raise UserError(
                f"{self.uri}: {posixpath.basename(place)} could not be written there ({error}); the "
                f"results stay in {self.local}, and the same command uploads them later"
            ) from None

    def upload_new(self, file: Path) -> None:
        """Upload a file unless this version of it is there."""
        stamp = file.stat().st_mtime_ns, file.stat().st_size
        if _uploaded.get(file) == stamp:
            return
        there = self.filesystem.get_file_info(self.place(file))
        if there.size != stamp[1] or _seconds(there) < stamp[0] / 1e9:
            self.upload(file)
        _uploaded[file] = stamp

    def download(self, path: Path, last: str = "") -> bool:
        """Download ``path`` as ``pull`` does; return whether the URI has any such file."""
        from pyarrow import fs

        place, found = self.place(path), False
        info = self.filesystem.get_file_info(place)
        if info.type == fs.FileType.NotFound:
            return False
        if info.type == fs.FileType.File:
            self._copy(info, path)
            return True
        below = fs.FileSelector(place, recursive=True)
        there = self.filesystem.get_file_info(below)
        for info in sorted(there, key=lambda one: one.base_name == last):
            relative = Path(posixpath.relpath(info.path, place))
            hidden = any(part.startswith(".") and part != ".." for part in relative.parts)
            if info.type == fs.FileType.File and relative.suffix != ARCHIVE and not hidden:
                if relative.is_absolute() or ".." in relative.parts:
                    raise UserError(f"{info.path}: is outside of {place}; nothing outside is read")
                self._copy(info, path / relative)
                found = True
        return found

    def _copy(self, info: Any, file: Path) -> None:
        """Download a file unless the local one has the same size and is not older."""
        if file.is_file():
            here = file.stat()
            if here.st_size == info.size and here.st_mtime >= _seconds(info):
                return
        with (
            replacing(file) as temporary,
            self.filesystem.open_input_stream(info.path) as content,
            temporary.open("wb") as out,
        ):
            while block := content.read(1 << 22):
                out.write(block)
        _uploaded[file] = file.stat().st_mtime_ns, file.stat().st_size

    def text(self, path: Path) -> str:
        """The text of a remote file."""
        with self.filesystem.open_input_stream(self.place(path)) as content:
            return content.read().decode()

    def age(self, path: Path) -> float | None:
        """Seconds since a remote file was written, by the remote clock; None when it is missing."""
        there = self.filesystem.get_file_info(self.place(path))
        if there.mtime is None:
            return None
        probe = path.with_name(f"{path.name}-probe")
        self.upload(path, self.place(probe))
        now = _seconds(self.filesystem.get_file_info(self.place(probe)))
        self.remove(probe)
        return now - _seconds(there)

    def remove(self, path: Path) -> None:
        from pyarrow import fs

        place = self.place(path)
        if self.filesystem.get_file_info(place).type == fs.FileType.File:
            self.filesystem.delete_file(place)

    def remove_all(self, path: Path) -> None:
        """Remove a remote file, or a remote folder with everything in it."""
        from pyarrow import fs

        place = self.place(path)
        kind = self.filesystem.get_file_info(place).type
        if kind == fs.FileType.Directory:
            self.filesystem.delete_dir(place)
        elif kind == fs.FileType.File:
            self.filesystem.delete_file(place)


def _seconds(info: Any) -> float:
    return 0.0 if info.mtime is None else info.mtime.timestamp()


_remotes: dict[tuple[Path, str], _Remote] = {}


def _remote_of(path: Path) -> _Remote | None:
    found = _copy_of(path)
    if found is None:
        return None
    if found not in _remotes:
        _remotes[found] = _Remote(*found)
    return _remotes[found]


def _copy_of(path: Path) -> tuple[Path, str] | None:
    """The folder of the local copy that contains ``path``, and its URI; None when there is none."""
    for folder in (path, *path.parents):
        marker = folder / HOME_FILE
        if marker.is_file():
            return folder, json.loads(marker.read_text())["uri"]
    return None


def _files(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or path.suffix == CHECKPOINT:
            continue
        if path.is_dir():
            yield from _files(path)
        elif path.is_file():
            yield path


def _filesystem(uri: str) -> tuple[Any, str]:
    """The file system of a URI and the path in it. Raises UserError when it cannot be reached."""
    import pyarrow as pa
    from pyarrow import fs

    try:
        try:
            filesystem, path = fs.FileSystem.from_uri(uri)
        except pa.ArrowInvalid:  # Arrow does not know the scheme
            import fsspec

            found, path = fsspec.core.url_to_fs(uri)
            filesystem = fs.PyFileSystem(fs.FSSpecHandler(found))
        filesystem.get_file_info(path)
    except (OSError, ValueError, ImportError, pa.ArrowException) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"{uri.partition('?')[0]}: cannot be reached ({reason}); give a folder, or a URI such as "
            "s3://BUCKET/FOLDER, with its credentials in the environment"
        ) from None
    return filesystem, path
