"""Why MLflow does not take records, in words, and at once where MLflow itself would try for minutes."""

import os
import re
import sqlite3
import threading
from contextlib import closing
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from raysae.redaction import redacted

SQLITE = "sqlite:///"
MAY_PASS = (
    "INTERNAL_ERROR",
    "TEMPORARILY_UNAVAILABLE",
    "REQUEST_LIMIT_EXCEEDED",
    "RESOURCE_EXHAUSTED",
)
"""MLflow's codes for a server that is away or busy."""
UNANSWERED = ("OperationalError", "TimeoutError", "Timeout", "ConnectionError")
"""Errors of SQLAlchemy, Python and requests: no answer came, or none in time."""
LONGEST = 300
"""Characters of a reason, at most."""
BUSY_SECONDS = 5.0


class Refused(Exception):
    """MLflow would take no record; the message says why and what helps."""


def sqlite_uri(file: Path) -> str:
    """The address of a SQLite file, as the installed SQLAlchemy reads it."""
    name = str(file).replace("%", "%25").replace("?", "%3F") if _decodes() else file
    return f"{SQLITE}{name}"


def check_file(uri: str, seconds: float | None = None) -> None:
    """Raise Refused when ``uri`` is a SQLite file that cannot be written; create its folder.

    MLflow itself would try such a file for minutes. A file that another process holds locked for
    ``seconds`` raises sqlite3.OperationalError.
    """
    seconds = BUSY_SECONDS if seconds is None else seconds
    if not uri.startswith(SQLITE) or uri == SQLITE:
        return
    name = uri.removeprefix(SQLITE).partition("?")[0]
    file = Path(unquote(name) if _decodes() else name)
    if file.is_symlink():
        raise Refused(
            f"{file} is a link to {os.readlink(file)}, which may be another's file; name that file in "
            "records.tracking_uri"
        )
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with closing(sqlite3.connect(file, timeout=seconds)) as database:
            database.execute("BEGIN IMMEDIATE")
            database.rollback()
    except (OSError, sqlite3.Error) as error:
        if "locked" in str(error):
            raise
        reason = getattr(error, "strerror", None) or str(error)
        raise Refused(
            f"{file} cannot be written ({reason}); name another file in records.tracking_uri"
        ) from None


def check_experiment(experiment: Any) -> None:
    """Raise Refused when MLflow's experiment was deleted: it takes no runs."""
    if experiment.lifecycle_stage == "deleted":
        raise Refused(
            f"its experiment {experiment.name!r} was deleted; restore it (mlflow experiments restore "
            f"--experiment-id {experiment.experiment_id}), or name another in records.experiment"
        )


def may_pass(error: Exception) -> bool:
    """Whether the same record may be taken later: the server is away, or the file is in use."""
    code = getattr(error, "error_code", None)
    if code is not None:
        return code in MAY_PASS
    kinds = {kind.__name__ for kind in type(error).__mro__}
    return "locked" in str(error) or not kinds.isdisjoint(UNANSWERED)


def is_locked(error: Exception) -> bool:
    """Whether another process holds the database locked: the record may be taken later."""
    return "locked" in str(error)


def why_silent(uri: str) -> str:
    """Why a call to MLflow at ``uri`` has not come back, in words; returns within a second or so."""
    found = ["it does not answer"]

    def look() -> None:
        try:
            check_file(uri, seconds=0.0)
        except sqlite3.Error as error:
            found[0] = f"{reason_of(error)}, by another process"
        except Exception as error:
            found[0] = reason_of(error)

    thread = threading.Thread(target=look, daemon=True)  # the file system may hang, too
    thread.start()
    thread.join(1.0)
    return found[0]


def _decodes() -> bool:
    """Whether SQLAlchemy takes ``%41`` in an address for a letter, as it does from 2.1 on."""
    first, second = version("sqlalchemy").split(".")[:2]
    return (int(first), int(second)) >= (2, 1)


def reason_of(error: Exception) -> str:
    """The error as one line of words, with secrets hidden."""
    text = redacted(" ".join(str(error).split())) or type(error).__name__
    system = re.search(r"\[Errno -?\d+\] ([^'\")]+)", text)
    if system and "HTTP" in text:
        return f"it does not answer ({system[1].strip()})"
    text = re.sub(r" ?\((Background on this error|\[SQL:).*$", "", text)
    if isinstance(error, ModuleNotFoundError):
        text = f"{text}: pip install the driver of this database"
    if len(text) > LONGEST:
        text = text[:LONGEST].rpartition(". ")[0] or text[:LONGEST].rpartition(" ")[0] + " ..."
    return text.removesuffix(".")
