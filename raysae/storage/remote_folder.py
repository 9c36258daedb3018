"""A folder at a URI with its local copy: uploads and downloads of single files."""

import posixpath
import shutil
import time
from functools import partial
from pathlib import Path
from typing import Any

from raysae.errors import UserError
from raysae.storage.files import refuse_links_outside, remove_temporary, replacing
from raysae.storage.ledger import Ledger, Stamp, There, stamp_of
from raysae.storage.retries import StorageError, retried

ARCHIVE = ".tar"
"""Suffix of the archive of a folder that is uploaded as one file."""


class RemoteFolder:
    """The folder at a URI, with its local copy."""

    def __init__(self, local: Path, uri: str, filesystem: Any, root: str):
        self.local, self.uri = local, uri.partition("?")[0]
        self.filesystem, self.root = filesystem, root
        self.ledger = Ledger(local)
        self._sent: dict[Path, Stamp] = {}
        """The files that this process knows to be at the URI as they are here."""
        if self.is_folder:
            refuse_links_outside(Path(root), "the folder at this URI")

    def place(self, path: Path) -> str:
        """The remote path of a local one."""
        return posixpath.join(self.root, *path.relative_to(self.local).parts)

    def upload(self, file: Path, place: str = "") -> None:
        """Upload a file, to the remote path ``place`` or to its own. Raises UserError when it fails."""
        place = place or self.place(file)
        try:
            if self.is_folder:  # other file systems show a file only when it is complete
                Path(place).parent.mkdir(parents=True, exist_ok=True)
                with replacing(Path(place)) as temporary:
                    shutil.copyfile(file, temporary)
            else:
                retried(partial(self._write, file, place))
        except (OSError, StorageError) as error:
            raise UserError(
                f"{self.uri}: {posixpath.basename(place)} could not be written there ({error}); the "
                f"results stay in {self.local}, and the same command uploads them later"
            ) from None

    def _write(self, file: Path, place: str) -> None:
        self.filesystem.create_dir(posixpath.dirname(place), recursive=True)
        with self.filesystem.open_output_stream(place) as out, file.open("rb") as content:
            while block := content.read(1 << 22):
                out.write(block)

    def upload_new(self, file: Path) -> None:
        """Upload a file unless this version of it is there."""
        stamp = stamp_of(file)
        if self._sent.get(file) == stamp:
            return
        entry = self.ledger.entry(file)
        if entry is None or entry.here != stamp or entry.there != self.there(file):
            self.upload(file)
            self.ledger.add(file, self.there(file))
        self._sent[file] = stamp

    def there(self, file: Path) -> There:
        """What tells whether the file's copy at the URI has changed."""
        info = self.filesystem.get_file_info(self.place(file))
        return _seconds(info), info.size or 0

    @property
    def is_folder(self) -> bool:
        """Whether the URI is a folder of this machine."""
        return self.filesystem.type_name == "local"

    def remove_leftovers(self) -> None:
        """Remove the partial files of killed processes, where the URI is a folder of this machine."""
        if self.is_folder:
            remove_temporary(Path(self.root))

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
        """Download a file unless the one at the URI is the one that was sent or fetched last."""
        there = _seconds(info), info.size or 0
        if file.is_file() and not self._is_news(file, there):
            return
        with (
            replacing(file) as temporary,
            self.filesystem.open_input_stream(info.path) as content,
            temporary.open("wb") as out,
        ):
            while block := content.read(1 << 22):
                out.write(block)
        self.ledger.add(file, there)
        self._sent[file] = stamp_of(file)

    def _is_news(self, file: Path, there: There) -> bool:
        """Whether the URI has another version of a local file, which was not made from it."""
        entry, here = self.ledger.entry(file), stamp_of(file)
        if entry is not None and entry.there == there:
            return False  # what was changed since was changed here
        if entry is not None and entry.here == here:
            return True
        return here[1] != there[1] or here[0] / 1e9 < there[0]  # both changed: the later one

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

    def changes(self, path: Path, seconds: float) -> bool:
        """Whether a remote file is written again or removed within so many seconds."""
        before, ends = self.there(path), time.monotonic() + seconds
        while time.monotonic() < ends:
            time.sleep(min(1.0, seconds / 10))
            if self.there(path) != before:
                return True
        return False

    def remove(self, path: Path) -> None:
        """Remove a remote file, if it exists."""
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
