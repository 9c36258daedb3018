"""Programs that are no part of Python's environment, such as Chromium: found, or the reason to skip."""

import os
import shutil
import time
from pathlib import Path

import pytest

MOST_SECONDS = 900.0
"""For which a test waits for programs that are being installed."""


def found(*names: str) -> str | None:
    """The path of the first of these programs; None where there is none.

    While the file that RAYSAE_INSTALLING names exists, programs are being installed (``.ci/run``).
    """
    mark = os.environ.get("RAYSAE_INSTALLING")
    deadline = time.monotonic() + MOST_SECONDS
    while mark and Path(mark).exists() and time.monotonic() < deadline:
        time.sleep(1)
    return next((path for name in names if (path := shutil.which(name))), None)


def needed(*names: str) -> str:
    """The path of the first of these programs; the test is skipped where there is none."""
    path = found(*names)
    if path is None:
        pytest.skip(f"no {names[0]} on this machine; root installs it by scripts/programs.sh")
    return path
