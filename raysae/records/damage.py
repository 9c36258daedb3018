"""Files of a run that were damaged after they were written: found, and told in one sentence."""

import math
import sqlite3
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from raysae.console.shell import raysae_command
from raysae.errors import UserError
from raysae.sae.checkpoint import CONFIG_FILE, METRICS_FILE, WEIGHTS_FILE
from raysae.storage.files import read_json

LENGTH_BYTES = 8
"""A safetensors file begins with the length of its header."""


def read_selection(file: Path) -> dict[str, Any]:
    """The content of ``selection.json``. Raises UserError when it does not hold a choice."""
    found = read_object(file)
    choice, rule = found.get("choice"), found.get("rule")
    if not isinstance(choice, dict) or not isinstance(rule, str):
        raise UserError(f"{file}: holds no choice and rule; the file was damaged or altered")
    number = choice.get("trial", "")
    if not (number is None or type(number) is int) or not isinstance(choice.get("reason"), str):
        raise UserError(f"{file}: its choice names no trial and reason; it was damaged or altered")
    return found


def read_object(file: Path) -> dict[str, Any]:
    """The keys and values of a JSON file. Raises UserError when it is missing or holds something else."""
    if not file.is_file():
        raise UserError(f"{file}: not found; the file was removed")
    found = read_json(file)
    if not isinstance(found, dict):
        raise UserError(
            f"{file}: holds a {type(found).__name__}, expected keys and values; the file was damaged "
            "or altered"
        )
    return found


def read_record(folder: Path) -> dict[str, Any]:
    """The record of the SAE committed in ``folder``.

    Raises UserError when a file of the commit is missing, damaged or truncated.
    """
    file = folder / METRICS_FILE
    record = read_object(file)
    if missing := [key for key in NEEDED if key not in record]:
        raise UserError(f"{file}: lacks {', '.join(missing)}; the file was damaged or altered")
    wrong = [key for key, kind in NEEDED.items() if not isinstance(record[key], kind)]
    wrong += [key for key in ("steps", "started", "seconds") if not _is_number(record[key])]
    if wrong:
        raise UserError(
            f"{file}: {', '.join(dict.fromkeys(wrong))} has a value of another kind; the file was "
            "damaged or altered"
        )
    return record


NEEDED: Mapping[str, type | tuple[type, ...]] = {
    "metrics": dict, "history": list, "steps": int, "started": (int, float), "seconds": (int, float),
}  # fmt: skip
"""What every record of a committed SAE holds."""


def check_commit(folder: Path) -> None:
    """Raise UserError when the SAE committed in ``folder`` is damaged, as far as a quick look shows."""
    read_record(folder)
    read_object(folder / CONFIG_FILE)
    check_weights(folder / WEIGHTS_FILE)


def check_weights(file: Path) -> None:
    """Raise UserError when a safetensors file is missing, truncated, or has no readable header."""
    import json

    if not file.is_file():
        raise UserError(f"{file}: not found; the folder is not complete")
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(LENGTH_BYTES), "little")
        if not 0 < length <= size - LENGTH_BYTES:
            raise UserError(f"{file}: not a readable safetensors file; it was damaged or truncated")
        try:
            header = json.loads(stream.read(length))
            ends = [one["data_offsets"][1] for name, one in header.items() if name[:2] != "__"]
            whole = LENGTH_BYTES + length + max(ends, default=0) == size
        except (ValueError, KeyError, TypeError, AttributeError, IndexError):
            whole = False
    if not whole:
        raise UserError(f"{file}: not a readable safetensors file; it was damaged or truncated")


def check_database(file: Path) -> None:
    """Raise UserError when a SQLite file is damaged; a file that does not exist is not."""
    if not file.exists():
        return
    try:
        with closing(sqlite3.connect(f"file:{_quoted(file)}?mode=ro", uri=True)) as database:
            (found,) = database.execute("PRAGMA quick_check").fetchone()
            database.execute("SELECT count(*) FROM trials").fetchone()
    except sqlite3.Error as error:
        if "locked" in str(error):
            return
        found = str(error)
    if found != "ok":
        raise UserError(f"{file}: not a readable study ({found}); the file was damaged or altered")


def rebuilt_by(run: str | Path) -> str:
    """The end of a message: which command makes a damaged file of the run again."""
    again = raysae_command("sweep", "--resume", run)
    return f"{again} makes it again from what is committed"


def _quoted(file: Path) -> str:
    from urllib.parse import quote

    return quote(str(file.absolute()))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
