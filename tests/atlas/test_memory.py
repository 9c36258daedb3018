"""What a worker of the atlas takes in memory is what was stated for it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import raysae

PROGRAM = Path(__file__).with_name("memory_program.py")
BESIDE = 150e6
"""Bytes that a process may take beside the stated ones: rows, a few buffers, fragments."""


@pytest.mark.long
@pytest.mark.parametrize("arguments", [("8192", "0"), ("4096", "0", "1")])
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux says what it took")
def test_sites_with_checkpoints_and_figures_take_what_is_stated(tmp_path, arguments):
    places = {"PYTHONPATH": str(Path(raysae.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(PROGRAM), str(tmp_path), *arguments],
        env={**os.environ, **places}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    took, stated = map(int, done.stdout.split())
    assert took < stated + BESIDE
