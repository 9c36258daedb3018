"""Ray's token: the one that is there is offered to a cluster, whenever Ray was imported."""

import os
import secrets
from contextlib import suppress
from pathlib import Path
from typing import Any

from raysae.errors import UserError

MODE, TOKEN, TOKEN_PATH = "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"
"""The environment variables that Ray reads: whether tokens are used, the token, the token's file."""


def use_token(starting: bool) -> None:
    """Make Ray in this process use tokens as the environment says, and where it has a token.

    ``ray.init`` offers no token to a cluster at HOST:PORT unless the mode says so. Ray reads the mode
    when it is imported, which may have been long ago, so it is made to read it again. With ``starting``,
    a Ray that is started here gets a token of its own when it could not save one in the home folder.
    Does not change a Ray that is connected: call it before ``ray.init``. Raises UserError when the file
    that RAY_AUTH_TOKEN_PATH names has no token.
    """
    if _named_file_is_bad():
        raise UserError(
            f"{TOKEN_PATH} is {os.environ[TOKEN_PATH]!r}: no file with a Ray token that can be read is "
            f"there; correct the path, or unset {TOKEN_PATH}"
        )
    if has_token():
        os.environ.setdefault(MODE, "token")
    elif starting and os.environ.get(MODE, "token").lower() == "token" and not _can_save_token():
        os.environ[TOKEN] = secrets.token_hex(32)
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
