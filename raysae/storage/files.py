"""Files that appear whole or not at all: written under a temporary name, flushed, then renamed."""

import fcntl
import hashlib
import json
import math
import os
import shutil
import socket
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from raysae.errors import UserError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path for a new file, which replaces ``path`` when the block succeeds.

    Missing parent folders are created. When the block fails, ``path`` stays as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary_path(path)
    try:
        yield temporary
        _flush(temporary)
        os.replace(temporary, path)
        _flush(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """A temporary folder, which replaces ``path`` when the block succeeds.

    When the block fails, ``path`` stays as it was.
    """
    temporary = _temporary_path(path)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                _flush(file)
        shutil.rmtree(path, ignore_errors=True)
        os.replace(temporary, path)
        _flush(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


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
    """The file's content. Raises UserError when it is not valid JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
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
    with file.open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise UserError(
                f"{file.parent}: {lock.read().strip() or 'another process'} is working on {what}; "
                f"wait for it, stop it, or {otherwise}"
            ) from None
        lock.truncate(0)
        lock.write(f"process {os.getpid()} on {socket.gethostname()}")
        lock.flush()
        yield


def remove_folder(path: Path) -> None:
    """Remove a folder and everything in it, if it exists."""
    if path.exists():
        shutil.rmtree(path)


def remove_temporary(folder: Path) -> None:
    """Remove the partial files of killed processes below ``folder``."""
    for path in folder.rglob(".*.tmp"):
        path.unlink(missing_ok=True)


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


def _temporary_path(path: Path) -> Path:
    return path.parent / f".{path.name}.{uuid.uuid4().hex[:8]}.tmp"


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
