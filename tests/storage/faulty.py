"""A file system of fsspec in memory that counts what is read, and fails, loses, changes or waits."""

import time
from collections import Counter
from datetime import UTC, datetime
from typing import ClassVar

import fsspec
from fsspec.implementations.memory import MemoryFile, MemoryFileSystem

SCHEME = "faulty"


class FaultyFileSystem(MemoryFileSystem):
    """What happens to reads is in the class, as fsspec makes its own instances."""

    protocol = (SCHEME,)
    store: ClassVar = {}
    pseudo_dirs: ClassVar = [""]
    read: ClassVar = Counter()
    opened: ClassVar = Counter()
    written: ClassVar = Counter()
    fail_reads = fail_writes = 0
    """So many of the next reads, or writes, fail."""
    wait = 0.0
    """Seconds that a read waits before it answers."""
    on_read = None
    """Called with the path before each read."""

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(str(path).replace(f"{SCHEME}://", "memory://"))

    @classmethod
    def reset(cls):
        cls.store.clear()
        cls.pseudo_dirs[:] = [""]
        for counter in (cls.read, cls.opened, cls.written):
            counter.clear()
        cls.fail_reads = cls.fail_writes = 0
        cls.wait, cls.on_read = 0.0, None

    @classmethod
    def put(cls, folder, to):
        """Copy a folder there."""
        system = cls()
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                system.pipe_file(f"{to}/{path.relative_to(folder).as_posix()}", path.read_bytes())
        cls.written.clear()

    @classmethod
    def bytes_read(cls, suffix=""):
        return sum(count for path, count in cls.read.items() if path.endswith(suffix))

    def _open(self, path, mode="rb", **kwargs):
        if mode == "wb":
            if type(self).fail_writes:
                type(self).fail_writes -= 1
                raise ConnectionError("the connection was reset")
            type(self).written[path] += 1
        opened = super()._open(path, mode, **kwargs)
        return Reading(self, path, opened) if mode == "rb" else opened


class Reading:
    """An open file whose reads are counted."""

    def __init__(self, system, path, file: MemoryFile):
        self.system, self.path, self.file, self.at, self.closed = system, path, file, 0, False
        type(system).opened[path] += 1

    def read(self, length=-1):
        kind = type(self.system)
        if kind.on_read:
            kind.on_read(self.path)
        if kind.wait:
            time.sleep(kind.wait)
        if kind.fail_reads:
            kind.fail_reads -= 1
            raise ConnectionError("the connection was reset")
        data = self.file.getvalue()[self.at :]
        data = data if length is None or length < 0 else data[:length]
        self.at += len(data)
        kind.read[self.path] += len(data)
        return data

    def seek(self, at, whence=0):
        self.at = {0: 0, 1: self.at, 2: len(self.file.getvalue())}[whence] + at
        return self.at

    def tell(self):
        return self.at

    def readable(self):
        return True

    def seekable(self):
        return True

    def writable(self):
        return False

    def close(self):
        self.closed = True

    def flush(self):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def touched(path):
    """Make a file look as if it had been written now."""
    FaultyFileSystem.store[path].created = datetime.now(UTC)


fsspec.register_implementation(SCHEME, FaultyFileSystem, clobber=True)
