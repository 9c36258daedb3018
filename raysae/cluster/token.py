"""Ray's token: the one that is there is offered to a cluster, whenever Ray was imported."""

import os
import secrets
import stat
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from raysae.errors import UserError

MODE, TOKEN, TOKEN_PATH = "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"
"""The environment variables that Ray reads: whether tokens are used, the token, the token's file."""
OPEN_TO_OTHERS = 0o077


def use_token(starting: bool) -> None:
    """Make Ray in this process use tokens as the environment says, and where it has a token.

    ``ray.init`` offers no token to a cluster at HOST:PORT unless the mode says so. Ray reads the mode
    when it is imported, which may have been long ago, so it is made to read it again. With ``starting``,
    a Ray that is started here gets a token, which is saved in the home folder where that is possible.
    Does not change a Ray that is connected: call it before ``ray.init``. Raises UserError when the file
    that RAY_AUTH_TOKEN_PATH names has no token.
    """
    if _named_file_is_bad():
        raise UserError(
            f"{TOKEN_PATH} is {os.environ[TOKEN_PATH]!r}: no file with a Ray token that can be read is "
            f"there; correct the path, or unset {TOKEN_PATH}"
        )
    _close_default_file()
    wanted = starting and os.environ.get(MODE, "token").lower() == "token"
    if wanted and not has_token() and not _saved_token():
        os.environ[TOKEN] = secrets.token_hex(32)
    if has_token():
        os.environ.setdefault(MODE, "token")
    _read_mode_again()


def has_token() -> bool:
    """Whether this process finds a token where Ray looks for one."""
    if os.environ.get(TOKEN):
        return True
    file = os.environ.get(TOKEN_PATH) or _default_file()
    return file is not None and _holds_text(Path(file))


def _named_file_is_bad() -> bool:
    named = os.environ.get(TOKEN_PATH)
    disabled = os.environ.get(MODE, "").lower() == "disabled"
    return bool(named) and not os.environ.get(TOKEN) and not disabled and not has_token()


def _default_file() -> Path | None:
    """The file in the home folder; None for a user without one."""
    try:
        return Path.home() / ".ray" / "auth_token"
    except RuntimeError:
        return None


def _holds_text(file: Path) -> bool:
    try:
        return bool(file.read_bytes().strip())
    except OSError:
        return False


def _can_save_token() -> bool:
    """Whether Ray can write a new token to the home folder."""
    file = _default_file()
    if file is None:
        return False
    there = next(path for path in (file, *file.parents) if path.exists())
    return (there == file or there.is_dir()) and os.access(there, os.W_OK)


def _saved_token() -> bool:
    """Save a new token to the home folder, for this user alone; whether that was possible.

    Ray itself would save it so that all users can read it.
    """
    file = _default_file()
    if file is None or not _can_save_token():
        return False
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")
        with os.fdopen(handle, "w") as out:
            out.write(secrets.token_hex(32))
        os.replace(temporary, file)
    except OSError:
        return False
    return True


def _close_default_file() -> None:
    """Let nobody else read the token in this user's home folder: earlier, Ray saved it open to all."""
    file = _default_file()
    if file is None:
        return
    with suppress(OSError):
        found = file.lstat()
        own = stat.S_ISREG(found.st_mode) and found.st_uid == os.getuid()
        if own and found.st_mode & OPEN_TO_OTHERS:
            file.chmod(0o600)


def _read_mode_again() -> None:
    """Make Ray read the mode from the environment, as its own ``ray.init`` does when it sets it.

    A release of Ray without these names reads it in ``ray.init`` or not at all.
    """
    import ray

    if ray.is_initialized():
        return
    with suppress(AttributeError, TypeError):
        core: Any = ray._raylet
        core.Config.initialize("")
        core.AuthenticationTokenLoader.instance().reset_cache()
