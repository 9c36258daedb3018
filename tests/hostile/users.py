"""Runs code as an ordinary user: permission checks pass for root, which would hide a fault.

``folder`` comes from the fixture ``user_folder``: pytest's own folders are closed to other users.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path

import pytest

ORDINARY, OTHER = 65534, 65533
"""The user id of the ordinary user, and that of somebody else, when the tests run as root."""
ROOT = Path(__file__).parents[2]
READ_ALL = ("setpriv", "--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search")
"""Lets the ordinary user read, but not write, a Python that is installed in root's own home."""
CHECK = """
import os, subprocess, sys, numpy, raysae.errors
assert os.getuid()
subprocess.run([sys.executable, "-c", ""], check=True)
"""
"""What the user must be able to do; Ray starts Python again."""
KEPT = ("PATH", "LANG", "OMP_NUM_THREADS", "CXX")
"""Variables of the environment that the ordinary user keeps."""


def as_ordinary_user(
    what: str | Sequence[str],
    folder: Path,
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    umask: int = 0o022,
    timeout: float = 120,
) -> subprocess.CompletedProcess[str]:
    """Run ``what`` as an ordinary user: Python code (a string) or a command (a sequence).

    HOME and TMPDIR are ``folder/home`` and ``folder/tmp``, which are made and belong to the user, as
    does ``folder`` with all that is in it (see ``hand_over``). ``env`` adds variables. The user starts in
    ``cwd``, by default ``folder``. Returns the finished process with its output as text. Who is not
    root runs ``what`` directly. Skips the test when the user cannot read Python or the repository.
    """
    command = [sys.executable, "-c", what] if isinstance(what, str) else list(what)
    for name in ("home", "tmp"):
        (folder / name).mkdir(exist_ok=True)
    hand_over(folder)
    return subprocess.run(
        [*_prefix(), *command], cwd=cwd or folder, env=_environment(folder) | dict(env or {}),
        umask=umask, timeout=timeout, capture_output=True, text=True, check=False,
        **_identity(),
    )  # fmt: skip


def hand_over(folder: Path, user: int = ORDINARY) -> None:
    """Make ``folder`` and all that root has in it belong to ``user``; links are not followed."""
    if os.getuid() != 0:
        return
    for path in (folder, *folder.rglob("*")):
        if path.lstat().st_uid == 0:
            os.chown(path, user, user, follow_symlinks=False)


@pytest.fixture
def user_folder() -> Iterator[Path]:
    """A new folder that the ordinary user owns, and that all may enter and read."""
    folder = Path(tempfile.mkdtemp(prefix="raysae-user-", dir="/tmp"))
    folder.chmod(0o755)
    hand_over(folder)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def _environment(folder: Path) -> dict[str, str]:
    kept = {name: os.environ[name] for name in KEPT if name in os.environ}
    own = {"HOME": str(folder / "home"), "TMPDIR": str(folder / "tmp")}
    return {**kept, **own, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}


def _identity() -> dict[str, object]:
    """The options of ``subprocess`` for the user; none with ``setpriv``, which needs root."""
    if os.getuid() != 0 or _prefix():
        return {}
    return {"user": ORDINARY, "group": ORDINARY, "extra_groups": []}


@cache
def _prefix() -> tuple[str, ...]:
    """What stands before the command of the ordinary user. Skips the test when there is no way."""
    if os.getuid() != 0:
        return ()
    lowered = ("--reuid", str(ORDINARY), "--regid", str(ORDINARY), "--clear-groups")
    ways = [(READ_ALL[0], *lowered), (READ_ALL[0], *lowered, *READ_ALL[1:])]
    if shutil.which(READ_ALL[0]) is None:
        ways = [()]
    reason = ""
    for way in ways:
        reason = _failure(way)
        if not reason:
            return way
    pytest.skip(f"an ordinary user cannot run Python here: {reason}")


def _failure(way: tuple[str, ...]) -> str:
    """Why the ordinary user cannot import what the tests need; empty when it can."""
    check = [*way, sys.executable, "-c", CHECK]
    user = {} if way else {"user": ORDINARY, "group": ORDINARY, "extra_groups": []}
    try:
        done = subprocess.run(
            check, cwd="/", env=_environment(Path("/")), capture_output=True, text=True, check=False,
            **user,
        )  # fmt: skip
    except OSError as error:
        return str(error)
    return "" if done.returncode == 0 else (done.stderr.strip().splitlines() or ["it failed"])[-1]
