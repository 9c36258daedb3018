"""Paths and JSON files of other people, looked at before they are opened.

Opening a FIFO waits for ever, a device never ends, and a name that no system allows raises errors of
many kinds.
"""

import json
import os
import stat
from pathlib import Path
from typing import Any

from raysae.errors import UserError

DEEPEST_JSON = 100
"""Levels of lists and objects in each other. No file of ours has more than ten."""
LARGEST_JSON = 256 * 2**20
"""Bytes of a JSON file, at most: a manifest of ten thousand sites has about 100 MB."""
LONGEST_SHOWN = 80
KINDS = {
    stat.S_IFIFO: "a FIFO (a named pipe)",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
"""Files that are neither regular files nor folders, by their kind."""


def usable_path(path: str | Path) -> Path:
    """``path``, when the system allows its name and it is no device, FIFO or socket.

    It need not exist. Raises UserError otherwise.
    """
    shown = str(path) if len(str(path)) <= LONGEST_SHOWN else f"{str(path)[:LONGEST_SHOWN]}..."
    try:
        mode = os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return Path(path)
    except OSError as error:  # too long a name, links in a circle, a folder that may not be read
        raise UserError(f"{shown}: cannot be opened ({error.strerror}); check the path") from None
    except ValueError:  # NUL, or half a surrogate pair
        raise UserError(
            f"{shown!r}: no file can have this name: it holds a NUL or a broken character; check the "
            "path"
        ) from None
    kind = KINDS.get(stat.S_IFMT(mode))
    if kind is not None:
        raise UserError(f"{shown}: is {kind}; expected a regular file or a folder; name another")
    return Path(path)


def regular_file(path: str | Path) -> Path:
    """``path``, which must be a regular file that is there. Raises UserError when it is not."""
    path = usable_path(path)
    if path.is_dir():
        raise UserError(f"{path}: is a folder; expected a file")
    if not path.is_file():
        raise UserError(f"{path}: not found; no such file")
    return path


def parsed_json(text: str) -> Any:
    """The value of a JSON text.

    Raises ValueError when it is not valid JSON, gives a key twice, has a number that is not finite, or is
    nested too deeply.
    """
    try:
        value = json.loads(
            text, object_pairs_hook=_without_repeats, parse_constant=_refuse_constant
        )
    except RecursionError:
        raise ValueError("nested too deeply") from None
    _refuse_deep(value)
    return value


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a number of JSON")


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice[:LONGEST_SHOWN]!r} is given twice")
    return found


def _refuse_deep(value: Any) -> None:
    level = [value]
    for _ in range(DEEPEST_JSON):
        level = [
            item
            for one in level
            if isinstance(one, dict | list)
            for item in (one.values() if isinstance(one, dict) else one)
            if isinstance(item, dict | list)
        ]
        if not level:
            return
    raise ValueError(f"nested more than {DEEPEST_JSON} levels deep")
