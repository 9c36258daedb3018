"""Where the files of a store lie: in a folder, or at a URI, where they are read in ranges of bytes."""

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import pyarrow.parquet as pq

from raysae.activations.gone import told_if_gone
from raysae.errors import UserError
from raysae.storage.files import sha256_of
from raysae.storage.local_copies import is_uri
from raysae.storage.remote_files import RemoteFiles
from raysae.storage.untrusted import usable_path

ReadAt = Callable[[int, int], bytes]
"""Reads so many bytes of a file from an offset on; fewer at its end."""


class StoreFile(Protocol):
    """One file of a store: ``LocalFile`` or ``RemoteFile``. Its text is its path or URI."""

    def is_file(self) -> bool:
        """Whether it is there."""

    def size(self) -> int:
        """Its bytes."""

    def content(self) -> bytes:
        """All its bytes."""

    def read_into(self, memory: memoryview, at: int) -> None:
        """Fill ``memory`` with the bytes from ``at`` on. Raises UserError when it ends before."""

    def told(self) -> AbstractContextManager[None]:
        """Raises UserError in place of OSError when the block cannot read the file."""

    def reading(self) -> AbstractContextManager[ReadAt]:
        """A function that reads parts of the file."""

    def parquet(self) -> pq.ParquetFile:
        """The file as Parquet."""

    def sha256(self) -> str:
        """The SHA-256 hash, as 64 hexadecimal digits."""


@dataclass(frozen=True)
class LocalFile:
    """A file in a store's folder."""

    folder: Path
    path: Path

    def __str__(self) -> str:
        return str(self.path)

    def is_file(self) -> bool:
        """Whether it is there."""
        return self.path.is_file()

    def size(self) -> int:
        """Its bytes."""
        return self.path.stat().st_size

    def content(self) -> bytes:
        """All its bytes."""
        return self.path.read_bytes()

    def read_into(self, memory: memoryview, at: int) -> None:
        """Fill ``memory`` with the bytes from ``at`` on. Raises UserError when it ends before."""
        with self.told(), self.path.open("rb", buffering=0) as file:
            while memory:
                read = os.preadv(file.fileno(), [memory], at)
                if not read:
                    raise UserError(f"{self}: the file ends too early; it was truncated")
                memory, at = memory[read:], at + read

    def told(self) -> AbstractContextManager[None]:
        """Raises UserError in place of OSError when the block cannot read the file."""
        return told_if_gone(self.folder, self.path)

    @contextmanager
    def reading(self) -> Iterator[ReadAt]:
        """A function that reads parts of the file, which stays open during the block."""
        with self.path.open("rb", buffering=0) as file:
            yield lambda length, at: os.pread(file.fileno(), length, at)

    def parquet(self) -> pq.ParquetFile:
        """The file as Parquet."""
        return pq.ParquetFile(self.path)

    def sha256(self) -> str:
        """The SHA-256 hash, as 64 hexadecimal digits."""
        return sha256_of(self.path)


class LocalFiles:
    """The files in a folder."""

    uri = None

    def __init__(self, folder: Path):
        self.folder, self.place = folder, str(folder)

    def file(self, name: str) -> LocalFile:
        """The file ``name``, a path relative to the folder; it need not exist."""
        return LocalFile(self.folder, self.folder / name)

    def names(self) -> list[str]:
        """The names of all that is no folder, sorted."""
        files = (path for path in self.folder.rglob("*") if not path.is_dir())
        return sorted(path.relative_to(self.folder).as_posix() for path in files)


StoreFiles = LocalFiles | RemoteFiles
"""The files of a store."""


def files_at(place: str | Path) -> StoreFiles:
    """The files of a folder or a URI.

    Raises UserError when a folder's name cannot be used or a URI cannot be reached.
    """
    return RemoteFiles(str(place)) if is_uri(str(place)) else LocalFiles(usable_path(place))
