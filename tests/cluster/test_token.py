"""Ray's token: offered where there is one, whatever was imported or set before, and never left out."""

import json
import os
import subprocess
import sys
import textwrap

import pytest

from raysae.cluster import token
from raysae.errors import UserError

TOKEN = "0" * 64
PROGRAM = """
import json, sys
{first}
import raysae
from raysae.cluster.session import ray_session
from raysae.config import ResourcesConfig
from raysae.console.quiet import quiet_environment

def told():
    quiet_environment()
    with ray_session(ResourcesConfig(cpus=1)):
        import ray
        from ray._private.authentication.authentication_utils import is_token_auth_enabled
        task = ray.remote(lambda: "ran").remote()
        return [ray.get(task, timeout=300), is_token_auth_enabled()]

{last}
"""


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home" / ".ray").mkdir(parents=True)
    for name in (token.MODE, token.TOKEN, token.TOKEN_PATH, "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "home"


def program(first="", last="print(json.dumps(told()))"):
    code = textwrap.dedent(PROGRAM).format(first=first, last=last)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=600
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.long
def test_ray_may_be_imported_first_and_a_session_may_come_again(home):
    (home / ".ray/auth_token").write_text(TOKEN)
    twice = "print(json.dumps([told(), told()]))"
    assert program("import ray\nfrom ray import tune", twice) == [["ran", True]] * 2


@pytest.mark.long
def test_a_mode_that_was_set_late_holds(home):
    (home / ".ray/auth_token").write_text(TOKEN)
    late = "import os, ray\nos.environ['RAY_AUTH_MODE'] = 'disabled'"
    assert program(late) == ["ran", False]


def test_a_ray_of_the_users_own_works_after_raysae_was_used(home):
    (home / ".ray/auth_token").write_text(TOKEN)
    own = "quiet_environment(); import ray; ray.init(num_cpus=1, log_to_driver=False)"
    assert program("import ray", f"{own}; print(json.dumps(told()))") == ["ran", True]


@pytest.mark.long
def test_a_home_that_cannot_hold_a_token(home):
    (home / ".ray").rmdir()
    (home / ".ray").write_text("a file is in the way")
    assert program("import ray") == ["ran", True]


@pytest.fixture
def mode_read(monkeypatch):
    """The environment's mode at each time that Ray was made to read it."""
    read = []
    monkeypatch.setattr(token, "_read_mode_again", lambda: read.append(os.environ.get(token.MODE)))
    monkeypatch.setenv(token.MODE, "")  # so that what the tests set is taken back
    monkeypatch.setenv(token.TOKEN, "")
    monkeypatch.delenv(token.MODE)
    monkeypatch.delenv(token.TOKEN)
    return read


@pytest.mark.parametrize(
    ("file", "given", "mode"),
    [
        (TOKEN, {}, "token"),
        ("", {}, None),
        (None, {}, None),
        (None, {token.TOKEN: TOKEN}, "token"),
        (TOKEN, {token.MODE: "disabled"}, "disabled"),
        (TOKEN, {token.MODE: "token"}, "token"),
    ],
)
def test_the_mode_follows_the_token_and_yields_to_the_user(
    home, mode_read, monkeypatch, file, given, mode
):
    if file is not None:
        (home / ".ray/auth_token").write_text(file)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    token.use_token(starting=False)
    assert mode_read == [mode]


def test_a_named_file_without_a_token_is_told(home, mode_read, monkeypatch):
    monkeypatch.setenv(token.TOKEN_PATH, str(home / "no_such_file"))
    with pytest.raises(UserError, match="RAY_AUTH_TOKEN_PATH is .*no_such_file.*correct the path"):
        token.use_token(starting=True)
    monkeypatch.setenv(token.MODE, "disabled")
    token.use_token(starting=True)


@pytest.mark.parametrize("starting", [True, False])
def test_only_a_ray_started_here_gets_a_token_of_its_own(home, mode_read, starting):
    (home / ".ray").rmdir()
    (home / ".ray").write_text("a file is in the way")
    token.use_token(starting)
    assert len(os.environ.get(token.TOKEN, "")) == (64 if starting else 0)
