"""Whether this user may go on with a run of another one, asked before any work."""

import os
from collections.abc import Iterator
from pathlib import Path

from raysae.errors import UserError
from raysae.sites import LAYER_FOLDERS
from raysae.storage.trouble import user

WRITTEN = (
    "trials", "trials/aside", "atlas", "atlas/hookpoint=*",
    *(f"atlas/{folder}" for folder in LAYER_FOLDERS), "report", "sweet_spot", ".ray",
)  # fmt: skip
"""Folders in which a run writes, or that it replaces."""


def refuse_unwritable(run: Path) -> None:
    """Raise UserError when this user may not write in a folder of the run in ``run``."""
    for folder in _folders(run):
        if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
            raise UserError(
                f"{folder}: {user(os.geteuid())} may not write there, as it belongs to "
                f"{user(folder.stat().st_uid)}; nothing was changed. Ask for the permission (chmod -R "
                "g+rwX), continue in a copy of the run folder, or take another name=NAME"
            )


def _folders(run: Path) -> Iterator[Path]:
    yield run
    for pattern in WRITTEN:
        yield from sorted(path for path in run.glob(pattern) if path.is_dir())
