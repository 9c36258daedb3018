"""Files that appear whole or not at all: written under a temporary name, flushed, then renamed."""

import fcntl
import hashlib
import json
import math
import os
import shutil
import socket
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

from raysae.errors import UserError
from raysae.storage.leftovers import (
    exchange,
    flush,
    old_path,
    remove_leftovers,
    remove_leftovers_of,
    temporary_path,
)
from raysae.storage.trouble import in_words
from raysae.storage.untrusted import LARGEST_JSON, parsed_json, usable_path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path for a new file, which replaces ``path`` when the block succeeds.

    Missing parent folders are created. When the block fails, ``path`` stays as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_path(path)
    try:
        # the file is this process's own before anything is written to it
        os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666))
        mode = stat.S_IMODE(temporary.stat().st_mode)
        yield temporary
        _set_mode(temporary, mode)
        flush(temporary)
        os.replace(temporary, path)
        flush(path.parent)
    finally:
        with suppress(OSError):  # a full or lost disk must not hide what the block raised
            temporary.unlink(missing_ok=True)


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """A temporary folder, which replaces ``path`` when the block succeeds.

    The old or the new folder is there at any moment, also when the process is killed. When the block
    fails, ``path`` stays as it was. Leftovers of killed processes for the same ``path`` are removed.
    Raises UserError when ``path`` is a link or a file.
    """
    if path.is_symlink() or (path.exists() and not path.is_dir()):
        what = "a link" if path.is_symlink() else "a file"
        raise UserError(
            f"{path}: is {what}, which is not replaced by a folder; remove it, or give a folder"
        )
    remove_leftovers_of(path)
    temporary = temporary_path(path)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        _flush_below(temporary, stat.S_IMODE(temporary.stat().st_mode) & 0o666)
        _put_in_place(temporary, path)
        flush(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _put_in_place(temporary: Path, path: Path) -> None:
    """Rename ``temporary`` to ``path``. A folder that is at ``path`` is then at ``temporary`` or gone."""
    if not path.exists():
        os.replace(temporary, path)
    elif not exchange(temporary, path):
        old = old_path(path)  # found again by ``remove_leftovers`` after a kill at the next line
        os.replace(path, old)
        os.replace(temporary, path)
        shutil.rmtree(old, ignore_errors=True)


def _flush_below(folder: Path, mode: int) -> None:
    """Wait until all files below ``folder`` are on the disk, with the permissions ``mode``."""
    for place, _, files in os.walk(folder):
        for name in files:
            _set_mode(Path(place, name), mode)
            flush(Path(place, name))
        flush(Path(place))


def refuse_other_content(folder: Path, marker: str, what: str) -> None:
    """Raise UserError when ``folder`` is a file, or holds something but not the file ``marker``.

    ``what`` names in words the kind of folder that has the file ``marker``.
    """
    if not folder.exists() or (folder / marker).is_file():
        return
    if not folder.is_dir() or any(folder.iterdir()):
        raise UserError(
            f"{folder}: is there already and holds no {what} (no {marker}); nothing was written. "
            "Give another folder, or remove this one"
        )


def expanded(name: str | Path) -> Path:
    """``name`` as a path, with the home folder for ``~``, as far as this machine knows the user."""
    try:
        return Path(name).expanduser()
    except RuntimeError:
        return Path(name)


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 file, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write strict JSON, whole or not at all; numbers that are not finite become null."""
    write_text(path, json.dumps(_finite(value), indent=2, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """The file's content.

    Raises UserError when it is not valid JSON, has a key twice or a number that is not finite, is nested
    deeper than any of ours, is too large, or is a FIFO or a device; OSError when it is not there.
    """
    return json_from(path, usable_path(path).stat().st_size, path.read_bytes)


def json_from(path: Path | str, size: int, read: Callable[[], bytes]) -> Any:
    """The value of a JSON file of ``size`` bytes that ``read`` reads; ``path`` is for messages.

    Raises what ``read_json`` raises.
    """
    if size > LARGEST_JSON:
        raise UserError(f"{path}: {size:,} bytes; expected a JSON file of at most {LARGEST_JSON:,}")
    try:
        return parsed_json(read().decode("utf-8"))
    except FileNotFoundError:
        raise
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise UserError(
            f"{path}: not valid JSON ({error}); the file was damaged or altered"
        ) from None


@contextmanager
def locked(file: Path, what: str, otherwise: str) -> Iterator[None]:
    """Hold a lock on ``file`` during the block.

    When another process holds it, raises UserError that names the process, ``what`` it works on, and
    what to do ``otherwise``. A link or anything else but a file of its own is refused: see
    ``open_own``.
    """
    with _open_lock(file) as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise UserError(
                f"{file.parent}: {lock.read().strip() or 'another process'} is working on {what}; "
                f"wait for it, stop it, or {otherwise}"
            ) from None
        if lock.writable():
            with suppress(OSError):  # a full disk: the lock holds without the words in it
                os.ftruncate(lock.fileno(), 0)
                words = f"process {os.getpid()} on {socket.gethostname()}"
                os.write(lock.fileno(), words.encode())
        yield


def _open_lock(file: Path) -> TextIO:
    """The opened file; for reading only when another user made it, which suffices for a lock.

    Raises what ``open_own`` raises, and UserError when this user may not even read the file.
    """
    if not file.exists() or os.access(file, os.W_OK):
        return open_own(file)
    _refuse_foreign(file, file.lstat())
    try:
        handle = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise UserError(
            f"{in_words(error)}; the lock of a folder that you share must be yours to read"
        ) from None
    return os.fdopen(handle, encoding="utf-8", errors="replace")


def open_own(file: Path) -> TextIO:
    """Open a file that has this name and no other, to read and write it; created if it is missing.

    What is in it stays. Raises UserError for a link, for a file with a second name (a hard link), and
    for what is no file: what raysae writes there would end elsewhere. Raises UserError, too, when the
    file cannot be opened.
    """
    with suppress(FileNotFoundError):
        _refuse_foreign(file, file.lstat())
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        handle = os.open(file, flags, 0o666)
    except OSError as error:
        raise UserError(
            f"{file}: cannot be opened for writing ({error.strerror}); give this user the right to "
            "write it, or use another folder"
        ) from None
    opened = os.fdopen(handle, "r+", encoding="utf-8", errors="replace")
    try:
        _refuse_foreign(file, os.fstat(handle))
    except UserError:
        opened.close()
        raise
    return opened


def _refuse_foreign(file: Path, found: os.stat_result) -> None:
    if stat.S_ISREG(found.st_mode) and found.st_nlink <= 1:
        return
    what = "a file with a second name (a hard link)" if stat.S_ISREG(found.st_mode) else "no file"
    if stat.S_ISLNK(found.st_mode):
        what = f"a link to {os.readlink(file)}"
    raise UserError(
        f"{file}: is {what}; a file of raysae's own was expected, and nothing was written. Remove it"
    )


def refuse_links_outside(folder: Path, what: str) -> None:
    """Raise UserError when a link below ``folder`` leads out of it.

    Work on the folder would read, write or remove files elsewhere. ``what`` names the folder in words.
    ``folder`` itself may be a link.
    """
    if not folder.is_dir():
        return
    root = folder.resolve()
    for path in _links(root):
        to = Path(os.path.realpath(path))  # unlike resolve(), it takes a link to itself
        if not to.is_relative_to(root):
            raise UserError(
                f"{folder / path.relative_to(root)}: is a link to {to}, outside {what}; nothing was "
                "read or written. Remove the link, or replace it with the files that it leads to "
                "(cp -rL)"
            )


def _links(folder: Path) -> Iterator[Path]:
    """The links in ``folder`` and in all folders below it; links are not followed."""
    for parent, folders, files in os.walk(folder):
        for name in (*folders, *files):
            if (path := Path(parent, name)).is_symlink():
                yield path


def remove_folder(path: Path) -> None:
    """Remove a folder and everything in it, if it exists; of a link, only the link."""
    if path.is_symlink():
        path.unlink()
        return
    with suppress(FileNotFoundError):  # another process may remove it at the same time
        shutil.rmtree(path)


def remove_temporary(folder: Path) -> None:
    """Remove the partial files and folders of killed processes below ``folder``.

    Those of live processes of this machine stay. A folder that a killed process was replacing is put
    back.
    """
    remove_leftovers(folder)


def sha256_of(path: Path) -> str:
    """The SHA-256 hash of a file, as 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def _set_mode(file: Path, mode: int) -> None:
    """Let those read ``file`` whom the umask lets: safetensors writes files for their owner alone."""
    if stat.S_IMODE(file.stat().st_mode) != mode and not file.is_symlink():
        file.chmod(mode)
