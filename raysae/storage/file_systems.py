"""The file system behind a URI, by pyarrow or else by fsspec: its files, their sizes, ranges of bytes.

What can be told of a file's version is its size and time, and its ETag where fsspec gives it.
"""

import posixpath
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from raysae.errors import UserError
from raysae.redaction import WHERE_SECRETS_BELONG, redacted, secret_in
from raysae.storage import retries
from raysae.storage.retries import within

S3_TIMEOUTS = {"connect_timeout": 10.0, "request_timeout": 30.0}
"""Seconds that an S3 server may take to answer; pyarrow's file systems for S3 take them."""
VERSION_KEYS = ("ETag", "etag", "LastModified", "last_modified", "mtime", "updated", "created")
"""What file systems of fsspec call a file's version or time."""


@dataclass(frozen=True)
class Stamp:
    """What tells one version of a file from another."""

    size: int
    version: tuple[tuple[str, str], ...]
    """Its time and the like, by the file system's name for it."""

    def __str__(self) -> str:
        return ", ".join([f"{self.size:,} bytes", *(value for _, value in self.version[:1])])

    def fits(self, other: "Stamp") -> bool:
        """Whether both may be of the same version: a listing can say less than a look at the file."""
        here, there = dict(self.version), dict(other.version)
        common = here.keys() & there.keys()
        return self.size == other.size and all(here[key] == there[key] for key in common)


def place_of(uri: str) -> str:
    """The URI for people: without its ``?options`` and slashes at the end."""
    return uri.partition("?")[0].rstrip("/")


def refuse_unusable(uri: str) -> None:
    """Raise UserError when ``uri`` holds a secret, as it is printed and recorded, or a ``..``."""
    found = secret_in(uri)
    if found is not None:
        raise UserError(f"{redacted(uri)}: holds {found}; {WHERE_SECRETS_BELONG}")
    if ".." in uri.partition("?")[0].split("/"):
        raise UserError(f"{uri.partition('?')[0]}: a URI has no '..'; write it out without")


def reached(uri: str) -> tuple[Any, str]:
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
        filesystem = with_timeouts(filesystem)
        filesystem.get_file_info(path)
    except (OSError, ValueError, ImportError, pa.ArrowException) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"{uri.partition('?')[0]}: cannot be reached ({reason}); give a folder, or a URI such as "
            "s3://BUCKET/FOLDER, with its credentials in the environment"
        ) from None
    return filesystem, path


def with_timeouts(filesystem: Any) -> Any:
    """The same file system, with limits of time where it is pyarrow's for S3 and has none."""
    if filesystem.type_name != "s3":
        return filesystem
    _, (options,) = filesystem.__reduce__()
    missing = {key: value for key, value in S3_TIMEOUTS.items() if (options.get(key) or -1) <= 0}
    return type(filesystem)._reconstruct({**options, **missing}) if missing else filesystem


class Ranges:
    """The files below the folder of a URI: listed, looked at, and read in ranges. Each method is one try.

    Raises UserError when the URI cannot be reached, or names a folder here from which links lead out.
    """

    def __init__(self, uri: str):
        self.filesystem, self.root = reached(uri)
        handler = getattr(self.filesystem, "handler", None)
        self._fsspec: Any = getattr(handler, "fs", None)

    @property
    def is_folder(self) -> bool:
        """Whether the URI is a folder of this machine."""
        return bool(self.filesystem.type_name == "local")

    def listing(self) -> dict[str, Stamp]:
        """Every file below the folder by its name there; hidden files and folders are left out."""
        found = self._list_fsspec if self._fsspec is not None else self._list_native
        named = ((self._name(path), stamp) for path, stamp in found())
        return {name: stamp for name, stamp in named if not _is_hidden(name)}

    def stamp(self, name: str) -> Stamp | None:
        """A file's stamp now; None when it is not there."""
        if self._fsspec is not None:
            try:
                info = self._ask(self._fresh, name)
            except FileNotFoundError:
                return None
            return _stamp(info) if info["type"] == "file" else None
        from pyarrow import fs

        info = self.filesystem.get_file_info(self.path(name))
        return _native_stamp(info) if info.type == fs.FileType.File else None

    def read(self, name: str, memory: memoryview, at: int, handle: Any = None) -> Any:
        """Fill ``memory`` with the file's bytes from ``at`` on.

        Returns an open handle, to be given with a later read of the same file by any one thread at a
        time; None where the file system has none. Raises EOFError when the file ends before.
        """
        if self._fsspec is not None:
            data = self._ask(self._range, self.path(name), at, len(memory))
            if len(data) != len(memory):
                raise EOFError(f"{len(data):,} of {len(memory):,} bytes came")
            memory[:] = data
            return None
        handle = handle or self.filesystem.open_input_file(self.path(name))
        handle.seek(at)
        while memory:
            count = handle.readinto(memory)
            if not count:
                raise EOFError(f"{len(memory):,} bytes are missing")
            memory = memory[count:]
        return handle

    def path(self, name: str) -> str:
        """The path of a file in its file system."""
        return posixpath.join(self.root, name)

    def _name(self, path: str) -> str:
        return posixpath.relpath(path.strip("/"), self.root.strip("/"))

    def _ask(self, function: Any, *arguments: Any) -> Any:
        return within(retries.ATTEMPT_SECONDS, function, *arguments)

    def _list_native(self) -> Iterator[tuple[str, Stamp]]:
        from pyarrow import fs

        below = fs.FileSelector(self.root, recursive=True, allow_not_found=True)
        for info in self.filesystem.get_file_info(below):
            if info.type == fs.FileType.File:
                yield info.path, _native_stamp(info)

    def _list_fsspec(self) -> Iterator[tuple[str, Stamp]]:
        def listed() -> Any:
            self._fsspec.invalidate_cache()
            return self._fsspec.find(self.root, detail=True)

        for path, info in self._ask(listed).items():
            if info["type"] == "file":
                yield path, _stamp(info)

    def _fresh(self, name: str) -> Any:
        self._fsspec.invalidate_cache()
        return self._fsspec.info(self.path(name))

    def _range(self, path: str, at: int, length: int) -> bytes:
        """The bytes, and no more: what fsspec reads ahead would be read in vain."""
        if self._fsspec.async_impl:
            return self._fsspec.cat_file(path, start=at, end=at + length)
        try:
            file = self._fsspec.open(path, "rb", cache_type="none")
        except TypeError:  # a file system of other arguments
            file = self._fsspec.open(path, "rb")
        with file:
            file.seek(at)
            return file.read(length)


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") for part in name.split("/"))


def _native_stamp(info: Any) -> Stamp:
    if info.mtime is None:
        return Stamp(info.size or 0, ())
    return Stamp(info.size or 0, (("mtime", str(info.mtime)), ("mtime_ns", str(info.mtime_ns))))


def _stamp(info: Any) -> Stamp:
    found = ((key, info.get(key)) for key in VERSION_KEYS)
    # one file system gives the same time as a number here and as a date there
    texts = (
        (key, value.timestamp() if isinstance(value, datetime) else value) for key, value in found
    )
    known = tuple((key, str(value)) for key, value in texts if value is not None)
    return Stamp(int(info["size"] or 0), known)
