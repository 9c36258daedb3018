"""Shell completion, asked as a shell asks: by environment variables, the answer on a descriptor."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from raysae.console.completion import SHELLS, main


def completed(line: str, folder: Path) -> list[str]:
    """The words that a shell is given for the end of ``line``."""
    answer = folder / "answer"
    asked = {
        "_ARGCOMPLETE": "1", "_ARGCOMPLETE_IFS": "\n", "COMP_LINE": line, "COMP_POINT": str(len(line)),
        "COMP_TYPE": "9", "_ARGCOMPLETE_STDOUT_FILENAME": str(answer),
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "raysae"],
        env={**os.environ, **asked}, cwd=folder, capture_output=True, timeout=120, check=False,
    )  # fmt: skip
    assert answer.exists(), done.stderr.decode()
    return answer.read_text().split("\n")


def test_a_verb(tmp_path):
    words = sorted(word.strip() for word in completed("raysae s", tmp_path))
    assert words == ["serve", "show", "store", "sweep"]


def test_keys_options_and_recipes_of_a_verb(tmp_path):
    (tmp_path / "mine.yaml").write_text("name: mine")
    assert "sae.d_sae=" in completed("raysae sweep sae.", tmp_path)
    assert "mine.yaml" in [word.strip() for word in completed("raysae sweep mi", tmp_path)]
    assert "--dry-run " in completed("raysae sweep --dr", tmp_path)


@pytest.mark.parametrize("shell", SHELLS)
def test_the_lines_for_a_shell(shell, capsys):
    assert main([shell]) == 0
    assert "raysae" in capsys.readouterr().out


@pytest.mark.skipif(not Path("/bin/bash").exists(), reason="no bash")
def test_bash_reads_the_lines(capsys):
    main(["bash"])
    lines = capsys.readouterr().out + "\ncomplete -p raysae\n"
    done = subprocess.run(["/bin/bash", "-c", lines], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("raysae")
