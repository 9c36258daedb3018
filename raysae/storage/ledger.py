"""What a local copy and its URI have in common: a line for each file that was sent or fetched.

Times of two machines cannot be compared, and a clock may be set back. So a file counts as sent when
neither it nor its copy has changed since the line was written; which of the two is newer is not asked.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Stamp = tuple[int, int, int]
"""Modification time (nanoseconds), size (bytes) and inode of a local file."""
There = tuple[float, int]
"""Modification time (seconds) and size (bytes) of a file at the URI."""


@dataclass(frozen=True)
class Entry:
    """A file and its copy as they were when they were last equal."""

    here: Stamp
    there: There


class Ledger:
    """The entries of a local copy. Several processes may add entries to one file."""

    def __init__(self, local: Path):
        self.local, self.file = local, local.with_name(f".{local.name}.sent")
        self._entries: dict[str, Entry] = {}
        self._read_to = 0

    def entry(self, file: Path) -> Entry | None:
        """The last entry of ``file``, by whichever process; None without one."""
        self._read()
        return self._entries.get(self._name(file))

    def add(self, file: Path, there: There) -> None:
        """Note that ``file`` and its copy at the URI are now equal."""
        entry = Entry(stamp_of(file), there)
        line = json.dumps([self._name(file), entry.here, entry.there])
        with self.file.open("a", encoding="utf-8") as out:  # one short write: lines do not mix
            out.write(f"{line}\n")
        self._entries[self._name(file)] = entry

    def _name(self, file: Path) -> str:
        return file.relative_to(self.local).as_posix()

    def _read(self) -> None:
        """Read the lines that were added since the last time; damaged ones are left out."""
        try:
            if self.file.stat().st_size == self._read_to:
                return
            with self.file.open("rb") as lines:
                lines.seek(self._read_to)
                added = lines.read()
        except OSError:  # none yet
            return
        whole, end, _ = added.rpartition(b"\n")
        self._read_to += len(whole) + len(end)
        for line in whole.splitlines():
            found = _entry(line)
            if found is not None:
                self._entries[found[0]] = found[1]


def stamp_of(file: Path) -> Stamp:
    """What tells whether a local file has changed."""
    found = file.stat()
    return found.st_mtime_ns, found.st_size, found.st_ino


def _entry(line: bytes) -> tuple[str, Entry] | None:
    try:
        name, here, there = json.loads(line)
        return str(name), Entry(_numbers(here), (float(there[0]), int(there[1])))
    except (ValueError, TypeError, IndexError):
        return None


def _numbers(here: Any) -> Stamp:
    moment, size, inode = map(int, here)
    return moment, size, inode
