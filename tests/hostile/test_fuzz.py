"""Damaged stores and SAEs, 1,000 of them: each is refused in words, or gives pyarrow's rows.

``scripts/fuzz_store.py`` tries more.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "fuzz_store.py"
MUTATIONS, PROCESSES = 1000, 2


@pytest.mark.long
def test_a_damaged_file_is_refused_in_words_or_read_as_pyarrow_reads_it():
    """No other error, no other row, no hang, bounded memory: the script tests all of it."""
    each = str(MUTATIONS // PROCESSES)
    running = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), "--mutations", each, "--seed", str(seed)],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            env={**os.environ, "PYTHONPATH": str(SCRIPT.parents[1])},
        )
        for seed in range(PROCESSES)
    ]  # fmt: skip
    told = [process.communicate()[0] for process in running]
    for process, words in zip(running, told, strict=True):
        assert process.returncode == 0, words[-5000:]
        assert f"{each} mutations, 0 failed" in words
