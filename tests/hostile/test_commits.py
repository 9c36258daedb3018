"""Crashes inside a commit: the old or the new product is there, and the next command is done."""

import errno
import random

import pytest

from tests.hostile.crashes import crash_commits

KINDS = {kind.name: kind for kind in crash_commits.KINDS}
MOST = 6
"""Calls of a commit that are tried here; ``scripts/crashes.py`` tries all."""


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("RAYSAE_CACHE", str(tmp_path / "cache"))
    random.seed(0)


@pytest.mark.parametrize("name", KINDS)
def test_a_kill_before_any_call(name, tmp_path):
    kills, wrong = crash_commits.kill_everywhere(KINDS[name], tmp_path / "crashes", MOST)
    assert kills > 2 and not wrong


@pytest.mark.parametrize("name", ["folder", "SAE", "trial with checkpoints"])
@pytest.mark.parametrize("error", [errno.EDQUOT, errno.EROFS, errno.EIO])
def test_a_disk_that_fails_at_any_call(name, error, tmp_path):
    tries, wrong = crash_commits.failing_disk(KINDS[name], tmp_path / "crashes", error, MOST)
    assert tries > 2 and not wrong


@pytest.mark.parametrize("name", ["SAE", "synthetic store", "import"])
def test_a_disk_that_fills_up(name, tmp_path):
    try:
        with crash_commits.small_disk(tmp_path / "try", "1m"):
            pass
    except OSError as error:
        pytest.skip(f"{error} (it takes root)")
    tries, wrong = crash_commits.full_disk(KINDS[name], tmp_path / "crashes", 3 * 4096)
    assert tries and not wrong
