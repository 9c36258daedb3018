"""Files that appear whole or not at all: written under a temporary name, flushed, then renamed."""

import fcntl
import hashlib
import json
import math
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

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


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path for a new file, which replaces ``path`` when the block succeeds.

    Missing parent folders are created. When the block fails, ``path`` stays as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_path(path)
    try:
        yield temporary
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
    Raises UserError when ``path`` is a link.
    """
    if path.is_symlink():
        raise UserError(
            f"{path}: is a link, which is not replaced; remove the link, or give a folder"
        )
    remove_leftovers_of(path)
    temporary = temporary_path(path)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        _flush_below(temporary)
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


def _flush_below(folder: Path) -> None:
    for place, _, files in os.walk(folder):
        for name in files:
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


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 file, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write strict JSON, whole or not at all; numbers that are not finite become null."""
    write_text(path, json.dumps(_finite(value), indent=2, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """The file's content. Raises UserError when it is not valid JSON, in which numbers are finite."""
    try:
        return json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{path}: not valid JSON ({error}); the file was damaged or altered"
        ) from None


@contextmanager
def locked(file: Path, what: str, otherwise: str) -> Iterator[None]:
    """Hold a lock on ``file`` during the block.

    When another process holds it, raises UserError that names the process, ``what`` it works on, and
    what to do ``otherwise``.
    """
    with _lock_file(file) as lock:
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


def _lock_file(file: Path) -> IO[str]:
    """The opened file; for reading only when another user made it, which suffices for a lock.

    Raises UserError when this user may not even read it.
    """
    try:
        return file.open("a+", encoding="utf-8", errors="replace")
    except PermissionError as error:
        try:
            return file.open(encoding="utf-8", errors="replace")
        except OSError:
            raise UserError(
                f"{in_words(error)}; the lock of a folder that you share must be yours to read"
            ) from None


def remove_folder(path: Path) -> None:
    """Remove a folder and everything in it, if it exists."""
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


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a number of JSON")


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
