"""Files at a URI, read in ranges of bytes and never copied here.

Each request is tried several times. A file that changed since the first look at it is refused, so that
no run mixes two versions of its data.
"""

import hashlib
import io
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from raysae.errors import UserError
from raysae.storage.file_systems import Ranges, Stamp, place_of, refuse_unusable
from raysae.storage.files import refuse_links_outside
from raysae.storage.retries import StorageError, retried

if TYPE_CHECKING:
    import pyarrow.parquet as pq

Value = TypeVar("Value")

LOOK_SECONDS = 10.0
"""Seconds after which a file that is still read is looked at again: has it changed?"""
MOST_HANDLES = 64
"""Files that are kept open between two reads, at most."""
BLOCK_BYTES = 8 * 2**20
KEPT = (".parquet", ".json")
"""The files whose stamps go to another process with this object."""
RESUME = "the same command continues when that is mended"


class RemoteFiles:
    """The files below a URI as they were when this was made; small, and picklable by the URI.

    ``seen`` are the stamps of files that another process saw before; a file of another stamp is refused.
    Raises UserError when the URI cannot be reached.
    """

    def __init__(self, uri: str, seen: Mapping[str, Stamp] | None = None):
        refuse_unusable(uri)
        self.uri, self.place = uri, place_of(uri)
        self._ranges, self._earlier = Ranges(uri), dict(seen or {})
        if self._ranges.is_folder:
            refuse_links_outside(Path(self._ranges.root), "the folder at this URI")
        self.seen = self._asked(self.place, self._ranges.listing)
        for name, stamp in self._earlier.items():
            self._compare(name, self.seen.get(name), stamp)
        self._looked: dict[str, float] = {}
        self._opened, self._lock = time.monotonic(), threading.Lock()
        self._handles: OrderedDict[int, tuple[str, Any]] = OrderedDict()

    def __reduce__(self) -> tuple[Any, ...]:
        kept = {name: stamp for name, stamp in self.seen.items() if name.endswith(KEPT)}
        return RemoteFiles, (self.uri, {**kept, **self._earlier})

    @property
    def folder(self) -> Path | None:
        """The folder of this machine that the URI names; None when it names none."""
        return Path(self._ranges.root) if self._ranges.is_folder else None

    def file(self, name: str) -> "RemoteFile":
        """The file ``name``, a path relative to the URI; it need not exist."""
        return RemoteFile(self, name)

    def names(self) -> list[str]:
        """The names of all files but hidden ones, sorted."""
        return sorted(self.seen)

    def stamps(self, names: list[str]) -> dict[str, Stamp]:
        """The stamps of some of the files, as they were first seen."""
        return {name: self.seen[name] for name in names if name in self.seen}

    def read_into(self, name: str, memory: memoryview, at: int) -> None:
        """Fill ``memory`` with the file's bytes from ``at`` on.

        Raises UserError, naming the file, when it is missing, has changed, ends before, or cannot be
        read within several tries.
        """
        shown = f"{self.place}/{name}"
        stamp = self.seen.get(name)
        if stamp is None:
            raise UserError(f"{shown}: missing; put it back, or make the store again")
        if at + len(memory) > stamp.size:
            raise UserError(f"{shown}: the file ends too early; it was truncated")

        def read() -> None:
            self._look_at_times(name)
            handle = self._taken(name)
            handle = self._ranges.read(name, memory, at, handle)  # one that failed is not kept
            self._keep(name, handle)

        def look() -> None:
            try:
                self._look(name)
            except UserError:
                raise
            except Exception:  # the storage is away: that is what the next try is for
                return

        self._asked(shown, read, look)

    def _asked(
        self, shown: str, function: Callable[[], Value], look: Callable[[], None] = lambda: None
    ) -> Value:
        try:
            return retried(function, look)
        except StorageError as error:
            raise UserError(f"{shown}: could not be read ({error}); {RESUME}") from None

    def _look_at_times(self, name: str) -> None:
        """Compare the file with its stamp, if that was not done lately."""
        if time.monotonic() - self._looked.get(name, self._opened) >= LOOK_SECONDS:
            self._look(name)

    def _look(self, name: str) -> None:
        self._compare(name, self._ranges.stamp(name), self.seen[name])
        self._looked[name] = time.monotonic()

    def _compare(self, name: str, found: Stamp | None, expected: Stamp) -> None:
        if found is None:
            raise UserError(
                f"{self.place}/{name}: missing: it was removed after the store was opened; put it back, "
                "and the same command continues"
            )
        if not found.fits(expected):
            raise UserError(
                f"{self.place}/{name}: changed during the run (before: {expected}; now: {found}); put "
                "the old file back and give the same command again, or make the run anew"
            )

    def _taken(self, name: str) -> Any:
        """An open handle of the file that nobody uses; None when there is none."""
        with self._lock:
            key = next((key for key, (kept, _) in self._handles.items() if kept == name), None)
            return None if key is None else self._handles.pop(key)[1]

    def _keep(self, name: str, handle: Any) -> None:
        if handle is None:
            return
        with self._lock:
            self._handles[id(handle)] = name, handle
            while len(self._handles) > MOST_HANDLES:
                self._handles.popitem(last=False)


@dataclass(frozen=True)
class RemoteFile:
    """A file of ``RemoteFiles``."""

    files: RemoteFiles
    name: str

    def __str__(self) -> str:
        return f"{self.files.place}/{self.name}"

    def is_file(self) -> bool:
        """Whether the file was there at the first look."""
        return self.name in self.files.seen

    def size(self) -> int:
        """Bytes of the file. Raises UserError when it is missing."""
        if not self.is_file():
            raise UserError(f"{self}: missing; put it back, or make the store again")
        return self.files.seen[self.name].size

    def read_into(self, memory: memoryview, at: int) -> None:
        """Fill ``memory`` with the bytes from ``at`` on. Raises UserError as ``RemoteFiles`` does."""
        self.files.read_into(self.name, memory, at)

    def pread(self, length: int, at: int) -> bytes:
        """The bytes from ``at`` on. Raises UserError as ``RemoteFiles`` does."""
        data = bytearray(length)
        self.read_into(memoryview(data), at)
        return bytes(data)

    def content(self) -> bytes:
        """All bytes of the file. Raises UserError as ``RemoteFiles`` does."""
        return self.pread(self.size(), 0)

    @contextmanager
    def told(self) -> Iterator[None]:
        """Nothing: what cannot be read raises UserError already."""
        yield

    @contextmanager
    def reading(self) -> Iterator[Callable[[int, int], bytes]]:
        """A function that reads a number of bytes from an offset on."""
        yield self.pread

    def parquet(self) -> "pq.ParquetFile":
        """The Parquet file, of which only what is asked for is read."""
        import pyarrow.parquet as pq

        return pq.ParquetFile(RangeFile(self))

    def sha256(self) -> str:
        """The SHA-256 hash, as 64 hexadecimal digits; all bytes are read."""
        found, size = hashlib.sha256(), self.size()
        for at in range(0, size, BLOCK_BYTES):
            found.update(self.pread(min(BLOCK_BYTES, size - at), at))
        return found.hexdigest()


class RangeFile(io.RawIOBase):
    """A remote file as Python's files are, for libraries that read those."""

    def __init__(self, file: RemoteFile):
        super().__init__()
        self._file, self._size, self._at = file, file.size(), 0

    def readable(self) -> bool:
        """True."""
        return True

    def seekable(self) -> bool:
        """True."""
        return True

    def tell(self) -> int:
        """The offset of the next read."""
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move to an offset from the start, the place now, or the end."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        self._at = max(base + offset, 0)
        return self._at

    def size(self) -> int:
        """Bytes of the file."""
        return self._size

    def read(self, size: int = -1) -> bytes:
        """Up to ``size`` bytes; all that are left when it is negative."""
        left = max(self._size - self._at, 0)
        data = self._file.pread(left if size < 0 else min(size, left), self._at)
        self._at += len(data)
        return data

    def readinto(self, memory: Any) -> int:
        """Fill the memory as far as the file goes; the number of bytes."""
        view = memoryview(memory).cast("B")
        count = min(len(view), max(self._size - self._at, 0))
        self._file.read_into(view[:count], self._at)
        self._at += count
        return count
