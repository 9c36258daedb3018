"""The Triton kernels, interpreted on the CPU against plain torch, and compiled for GPUs ahead of time."""

import subprocess
from pathlib import Path

import pytest

PROGRAM = Path(__file__).with_name("gpu_program.py")
COMPILE = Path(__file__).parents[2] / "scripts" / "compile_kernels.py"


def done(*command, seconds=900):
    return subprocess.run(
        command, check=False, capture_output=True, text=True, timeout=seconds
    )  # fmt: skip


def test_triton_kernels_do_what_torch_does(peer_python):
    ended = done(peer_python, PROGRAM)
    assert ended.returncode == 0, ended.stderr[-4000:]


@pytest.mark.long
def test_no_kernel_spills_registers(peer_python):
    ended = done(peer_python, COMPILE, "--all")
    assert ended.returncode == 0, ended.stdout[-4000:] + ended.stderr[-4000:]
    assert "skipped" in ended.stdout or "sm_90" in ended.stdout
