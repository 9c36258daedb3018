"""Folders that live at a URI (``s3://bucket/runs``, ``gs://``, ``file://``, what fsspec knows), and here.

Such a folder is worked on in a copy on each node, below the cache folder, and what is done is sent home
file by file. ``bind`` ties a copy to its URI; ``push``, ``pull`` and ``discard`` then find the way from
any path within it, and do nothing for a path that is nobody's copy: callers need not know.
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
from raysae.storage.files import replacing, replacing_folder, write_text

HOME_FILE = ".raysae-home"
"""Tells of a copy where it lives."""
CACHE_VARIABLE = "RAYSAE_CACHE"
CHECKPOINT, ARCHIVE = ".training", ".tar"
"""Suffixes of a folder that is sent packed, and of what is sent."""
CLAIM_FILE, CLAIM_SECONDS = ".driver", 120
_sent: dict[Path, tuple[int, int]] = {}
"""Time and size of what this process has sent."""


def is_uri(name: str | None) -> bool:
    """Whether ``name`` is a URI and no folder's path."""
    return name is not None and re.match(r"[a-z][a-z0-9+.-]+://", name) is not None


def join(folder: str, name: str) -> str:
    """``name`` below ``folder``, which is a path or a URI (whose ``?options`` stay at the end)."""
    if not is_uri(folder):
        return f"{folder}/{name}"
    base, mark, options = folder.partition("?")
    return f"{base.rstrip('/')}/{name}{mark}{options}"


def split(uri: str) -> tuple[str, str]:
    """The folder above, and the name in it: ``join`` undone."""
    base, mark, options = uri.partition("?")
    parent, name = posixpath.split(base.rstrip("/"))
    return f"{parent}{mark}{options}", name


def local_copy(uri: str) -> Path:
    """The folder where this node has its copy of ``uri``: in ``RAYSAE_CACHE``, else ~/.cache/raysae."""
    cache = os.environ.get(CACHE_VARIABLE) or "~/.cache/raysae"
    scheme, _, rest = uri.partition("?")[0].partition("://")
    parts = [part for part in rest.split("/") if part not in ("", ".", "..")]
    return Path(cache).expanduser().absolute().joinpath(scheme, *parts)


def bind(uri: str) -> Path:
    """This node's copy of ``uri``, made when it is not there. Raises UserError when ``uri`` cannot be
    reached, or the copy not be written."""
    local = local_copy(uri)
    _filesystem(uri)
    if _home_of(local) != (local, uri):
        try:
            write_text(local / HOME_FILE, json.dumps({"uri": uri}))
        except OSError as error:
            raise UserError(
                f"{local}: {uri} has its copy there, and nothing can be written ({error.strerror}); "
                f"name another folder in {CACHE_VARIABLE}"
            ) from None
    return local


def is_copy(path: Path) -> bool:
    """Whether ``path`` is in the copy of a folder that lives at a URI."""
    return _home_of(path) is not None


def push(path: Path, last: str = "") -> None:
    """Send a file, or what is new in a folder and all below it, home; but no hidden files, and no
    folders that are sent packed.

    The file called ``last`` goes after all others: where it is, the folder is whole. Raises UserError
    when it cannot be sent; what is here stays.
    """
    home = _home(path)
    if home is None or not path.exists():
        return
    files = [path] if path.is_file() else sorted(_files(path), key=lambda f: f.name == last)
    for file in files:
        home.send_new(file)


def pull(path: Path, last: str = "") -> bool:
    """Fetch a file, or what a folder lacks here, from home, ``last`` after all others; whether there was
    any."""
    home = _home(path)
    return home is not None and home.fetch(path, last)


def move(path: Path, to: Path) -> None:
    """Move a file or folder to another place within the same copy, here and at home."""
    home = _home(path)
    to.parent.mkdir(parents=True, exist_ok=True)
    os.replace(path, to)
    if home is not None:
        push(to)
        home.remove_all(path)


def discard(path: Path) -> None:
    """Remove at home what was a file or folder ``path`` here."""
    home = _home(path)
    if home is not None:
        home.remove_all(path)


def fetched(uri: str) -> Path:
    """This node's copy of a folder, with all that is there. Others on this node wait meanwhile."""
    folder = bind(uri)
    with (folder / ".fetching").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        pull(folder)
    return folder


def push_archive(folder: Path) -> None:
    """Send a folder home as one object, which is there whole or not at all."""
    home = _home(folder)
    if home is None:
        return
    with tempfile.NamedTemporaryFile(suffix=".tar") as archive:
        with tarfile.open(archive.name, "w") as tar:
            tar.add(folder, arcname=".")
        home.send(Path(archive.name), home.place(_archive(folder)))


def pull_archive(folder: Path) -> None:
    """Fetch what ``push_archive`` sent, where ``folder`` is not there. What is damaged is left alone."""
    home = _home(folder)
    if home is None or folder.exists() or not home.fetch(_archive(folder)):
        return
    try:
        with tarfile.open(_archive(folder)) as tar, replacing_folder(folder) as temporary:
            tar.extractall(temporary, filter="data")
    except (tarfile.TarError, OSError):
        pass
    finally:
        _archive(folder).unlink(missing_ok=True)


def discard_archive(folder: Path) -> None:
    """Remove what ``push_archive`` sent."""
    home = _home(folder)
    if home is not None:
        home.remove(_archive(folder))


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Hold a folder that lives at a URI against other machines, by a file there that is renewed.

    Raises UserError when another machine renewed it less than ``CLAIM_SECONDS`` ago.
    """
    home = _home(folder)
    if home is None:
        yield
        return
    claim = folder / CLAIM_FILE
    write_text(claim, f"process {os.getpid()} on {socket.gethostname()}")
    age = home.age(claim)
    other = home.text(claim) if age is not None and age < CLAIM_SECONDS else claim.read_text()
    if other.split(" on ")[-1] != socket.gethostname():  # on one machine a lock tells
        raise UserError(
            f"{home.uri}: {other} is working on this run; wait for it, stop it, or take another "
            f"name=NAME (a killed one is forgotten after {CLAIM_SECONDS} s)"
        )
    home.send(claim)
    over = threading.Event()

    def renew() -> None:
        while not over.wait(CLAIM_SECONDS / 4):
            with suppress(UserError):
                home.send(claim)

    renewer = threading.Thread(target=renew, daemon=True)
    renewer.start()
    try:
        yield
    finally:
        over.set()
        renewer.join()
        claim.unlink(missing_ok=True)
        home.remove(claim)


def _archive(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}{ARCHIVE}")


class _Home:
    """Where a copy lives."""

    def __init__(self, local: Path, uri: str):
        self.local, self.uri = local, uri.partition("?")[0]
        self.filesystem, self.root = _filesystem(uri)

    def place(self, path: Path) -> str:
        return posixpath.join(self.root, *path.relative_to(self.local).parts)

    def send(self, file: Path, place: str = "") -> None:
        place = place or self.place(file)
        try:
            self.filesystem.create_dir(posixpath.dirname(place), recursive=True)
            with self.filesystem.open_output_stream(place) as out, file.open("rb") as content:
                while block := content.read(1 << 22):
                    out.write(block)
        except OSError as error:
            raise UserError(
                f"{self.uri}: {posixpath.basename(place)} could not be written there ({error}); what is "
                f"done stays in {self.local}, and another go sends it"
            ) from None

    def send_new(self, file: Path) -> None:
        """Send a file unless this very version is there."""
        stamp = file.stat().st_mtime_ns, file.stat().st_size
        if _sent.get(file) == stamp:
            return
        there = self.filesystem.get_file_info(self.place(file))
        if there.size != stamp[1] or _seconds(there) < stamp[0] / 1e9:
            self.send(file)
        _sent[file] = stamp

    def fetch(self, path: Path, last: str = "") -> bool:
        """Copy what is there of ``path`` and not here, ``last`` after the rest; whether there was any."""
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
                    raise UserError(f"{info.path}: leads out of {place}")
                self._copy(info, path / relative)
                found = True
        return found

    def _copy(self, info: Any, file: Path) -> None:
        """Fetch a file, unless it is here with the same size and no older."""
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
        _sent[file] = file.stat().st_mtime_ns, file.stat().st_size

    def text(self, path: Path) -> str:
        """What a file there says."""
        with self.filesystem.open_input_stream(self.place(path)) as content:
            return content.read().decode()

    def age(self, path: Path) -> float | None:
        """For how long a file there has not been written, by the clock there; None: it is not there."""
        there = self.filesystem.get_file_info(self.place(path))
        if there.mtime is None:
            return None
        probe = path.with_name(f"{path.name}-probe")
        self.send(path, self.place(probe))
        now = _seconds(self.filesystem.get_file_info(self.place(probe)))
        self.remove(probe)
        return now - _seconds(there)

    def remove(self, path: Path) -> None:
        from pyarrow import fs

        place = self.place(path)
        if self.filesystem.get_file_info(place).type == fs.FileType.File:
            self.filesystem.delete_file(place)

    def remove_all(self, path: Path) -> None:
        """Remove a file, or a folder with all that is in it."""
        from pyarrow import fs

        place = self.place(path)
        kind = self.filesystem.get_file_info(place).type
        if kind == fs.FileType.Directory:
            self.filesystem.delete_dir(place)
        elif kind == fs.FileType.File:
            self.filesystem.delete_file(place)


def _seconds(info: Any) -> float:
    return 0.0 if info.mtime is None else info.mtime.timestamp()


_homes: dict[tuple[Path, str], _Home] = {}


def _home(path: Path) -> _Home | None:
    found = _home_of(path)
    if found is None:
        return None
    if found not in _homes:
        _homes[found] = _Home(*found)
    return _homes[found]


def _home_of(path: Path) -> tuple[Path, str] | None:
    """The copy that ``path`` is in, with its URI."""
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
    """The file system of a URI and the path in it. Raises UserError when there is none."""
    import pyarrow as pa
    from pyarrow import fs

    try:
        try:
            filesystem, path = fs.FileSystem.from_uri(uri)
        except pa.ArrowInvalid:  # a scheme that Arrow does not know
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
