"""The Triton kernels, interpreted on the CPU, against plain torch."""

import subprocess
from pathlib import Path


def test_triton_kernels_do_what_torch_does(peer_python):
    program = Path(__file__).with_name("gpu_program.py")
    done = subprocess.run(
        [peer_python, program], check=False, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stderr[-4000:]
