"""Redaction: secrets are hidden wherever they stand, and nothing else is, however long the text."""

import base64
import io
import os
from urllib.parse import quote

import pytest

from raysae.console.output import RedactedStream
from raysae.redaction import (
    is_secret_name,
    redacted,
    redacted_values,
    secret_in,
    without_secret,
)
from tests.hostile.canary import CANARY, FORMS, SAID, URIS, hidden

HARMLESS = (
    "http://127.0.0.1:5000/#/experiments/1",
    "http://host:5000/path@x",
    "sqlite:///me@lab.db",
    "sqlite:////home/me@lab/mlflow.db",
    "file:///home/me@lab/x",
    "abfss://container@account.dfs.core.windows.net/x",
    "postgresql://user@host/db",
    "s3://bucket/runs?region=eu&scheme=https",
    "runs/me@lab/x",
    "pad_token=3 max_tokens=50 token_id=4 tokens_per_second=9",
    "--pad-token 3 --key token_id=ids",
    "PWD=/home/me",
    "the token: 3 of 5; sequence=item",
    "git@github.com:me/x",
    "Basic configuration of a run",
)
UNITS = (
    "x", "a/", "a=", "a.", "a://", "://", "%40", "%3A%2F%2F", "a@", "a:b@", '"a":', "'", "\\", "-",
    "--a ", "key-", "?a=", "&a=", "bearer ", "authorization: ", "x://a:",
)  # fmt: skip
"""What a long text may repeat: the beginnings of everything that is looked for."""


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_TRACKING_PASSWORD", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("text", [*URIS, *SAID])
@pytest.mark.parametrize(
    "around", ["{}", "cannot reach '{}': refused", "('{}', 3)\nnext", '{{"a": "{}"}}']
)
def test_a_secret_is_hidden_wherever_it_stands(text, around):
    shown = redacted(around.format(text))
    assert hidden(shown) and "***" in shown
    assert redacted(shown) == shown


@pytest.mark.parametrize("text", HARMLESS)
def test_what_is_no_secret_stays(text):
    assert redacted(text) == text
    assert secret_in(text) is None


def test_the_name_beside_a_password_is_shown_and_a_key_is_not():
    assert redacted("http://me:secret@host") == "http://me:***@host"
    assert redacted("s3://key:secret@bucket") == "s3://***@bucket"
    assert without_secret("http://u:p@host:5/x?token=1&a=2") == "http://host:5/x?a=2"


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        ("MLFLOW_TRACKING_URI", f"http://user:{quote('a/' + CANARY)}@host", f"a/{CANARY}"),
        ("MLFLOW_TRACKING_PASSWORD", CANARY, CANARY),
        ("HF_TOKEN", CANARY, CANARY),
        ("AWS_SECRET_ACCESS_KEY", f"/{CANARY}", f"/{CANARY}"),
        ("HTTPS_PROXY", f"http://user:{CANARY}@proxy:3128", CANARY),
        ("http_proxy", f"user:{CANARY}@proxy:3128", CANARY),
        ("RAY_AUTH_TOKEN", CANARY, CANARY),
    ],
)
def test_what_the_environment_holds_is_hidden_in_every_form(name, value, shown, monkeypatch):
    monkeypatch.setenv(name, value)
    encoded = base64.b64encode(shown.encode()).decode()
    for form in (value, shown, quote(shown, safe=""), encoded):
        assert hidden(redacted(f"the word {form} and more"))
    assert redacted(os.getcwd()) == os.getcwd()


def test_a_word_is_not_hidden_because_it_is_a_password(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow:password@host")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "minioadmin")
    text = "mlflow ui; the password of minioadmin"
    assert redacted(text) == text
    assert redacted("at http://mlflow:password@host") == "at http://mlflow:***@host"


def test_base64_of_name_and_password_of_the_environment_is_hidden(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "user")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", CANARY)
    assert hidden(redacted(FORMS[2]))


def test_a_stream_hides_a_secret_that_is_written_in_pieces():
    stream = io.StringIO()
    output = RedactedStream(stream)
    for piece in ("at http://us", f"er:{CANARY[:4]}", f"{CANARY[4:]}@host\nmore"):
        output.write(piece)
    output.flush()
    assert stream.getvalue() == "at http://user:***@host\nmore"


def test_names_of_secrets():
    assert all(
        map(is_secret_name, ("AWSAccessKeyId", "api-key", "HF_TOKEN", "db_pw", "x-amz-signature"))
    )
    assert not any(
        map(is_secret_name, ("tokens", "tokenizer", "pad_token", "key", "max_tokens", "author"))
    )
    assert redacted_values({"token": CANARY, "tokens": 3}) == {"token": "***", "tokens": 3}


@pytest.mark.parametrize("unit", UNITS)
def test_a_long_text_is_searched_in_one_go(unit):
    """A search that is quadratic in the text's length takes from minutes to hours for each of these."""
    text = unit * (300_000 // len(unit))
    redacted(text)
    secret_in(text)
