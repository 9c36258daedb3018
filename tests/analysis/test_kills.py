"""An analysis whose driver is killed again and again, and resumed: the same files."""

import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.processes import below, kill

PHASES = ("loss", "loss.sequences=10", "labels", "tracking", "tracking.fires=2")
KILLS, WAIT = 2, 120


def start(run, out: Path) -> subprocess.Popen:
    place = [str(out.parent / "atlas"), "--store", str(run.store.path), "--out", str(out)]
    return subprocess.Popen(
        [sys.executable, "-m", "raysae.analyze", *place, *PHASES], stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def killed(process: subprocess.Popen) -> None:
    """Kill the command, and then Ray's processes that it started."""
    started = below(process.pid)
    process.kill()
    process.communicate()
    for pid in started:
        kill(pid)


def files(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def ended(run, out: Path) -> dict[str, bytes]:
    said, _ = (process := start(run, out)).communicate(timeout=300)
    assert process.returncode == 0, said[-3000:]
    return files(out / "analysis")


@pytest.mark.long
def test_killed_and_resumed_it_leaves_the_same_files(pocket_run, tmp_path):
    shutil.copytree(pocket_run.folder / "atlas", tmp_path / "atlas")
    peace = ended(pocket_run, tmp_path / "peace")
    out, random_ = tmp_path / "storm", random.Random(0)
    for number in range(KILLS):
        process, until = start(pocket_run, out), time.monotonic() + WAIT
        while len(list(out.glob("analysis/*/items/*/made.json"))) <= number:
            assert process.poll() is None and time.monotonic() < until
            time.sleep(0.02)
        time.sleep(random_.uniform(0, 0.3))
        killed(process)
    assert ended(pocket_run, out) == peace
