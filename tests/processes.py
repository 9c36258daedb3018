"""Processes of the tests' own Ray: which there are, and killing them."""

import os
import signal
from pathlib import Path


def processes_below(name: bytes) -> list[int]:
    """Processes below this one that call themselves ``name``: another test's Ray may be beside."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            ours = _is_below(int(folder.name), os.getpid())
            if ours and (folder / "cmdline").read_bytes().startswith(name):
                found.append(int(folder.name))
        except OSError:
            continue
    return found


def kill(pid: int) -> bool:
    """SIGKILL it; whether it was there."""
    try:
        os.kill(pid, signal.SIGKILL)
        return True
    except ProcessLookupError:
        return False


def is_alive(pid: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def below(pid: int) -> list[int]:
    """All processes that this one started, and those that they started."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if int(folder.name) != pid and _is_below(int(folder.name), pid):
                found.append(int(folder.name))
        except OSError:
            continue
    return found


def _is_below(pid: int, top: int) -> bool:
    while pid > 1:
        if pid == top:
            return True
        pid = int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])
    return False
