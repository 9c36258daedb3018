"""Nodes that share nothing but an S3 server: one is killed in mid-extraction, one in mid-scan."""

import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))
import s3_server

sys.path.pop(0)
SCRIPTS = Path(s3_server.__file__).parent


@pytest.mark.long
@pytest.mark.skipif(s3_server.missing() is not None, reason=str(s3_server.missing()))
def test_killed_nodes_cost_nothing():
    done = subprocess.run(
        [sys.executable, str(SCRIPTS / "three_nodes.py")], check=False, capture_output=True, text=True,
        timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "DIFFERENT" not in done.stdout and done.stdout.count(": equal") == 3
