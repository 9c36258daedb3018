"""Secrets: refused where they come in, used from the environment, and never shown or recorded."""

import json
import os
import subprocess
import sys
import traceback
import warnings
from importlib import import_module
from pathlib import Path

import pytest
import torch
import yaml

import raysae
from raysae.activations.importing.options import ImportOptions
from raysae.config import RecordsConfig, load_recipe, parse_recipe
from raysae.config.loading import load_run
from raysae.console.command_line import run_command
from raysae.console.shell import look_at_records
from raysae.errors import UserError
from raysae.records.environment import _command
from raysae.records.folder import open_run, read_run
from raysae.records.mlflow_listener import tracking_uri
from raysae.redaction import (
    redacted_command,
    redacted_errors,
    traceback_of,
)
from tests.hostile.canary import CANARY, FORMS, URIS, hidden

WAYS_IN = (
    "runs_dir",
    "store",
    "working_dir",
    "source.dataset",
    "source.model",
    "source.revision",
    "source.dataset_config",
    "records.tracking_uri",
    "records.experiment",
    "resources.address",
    "sweep.warm_start",
    "seed",
    "training.lr",
    "sae.variant",
    "models.a.records.tracking_uri",
)
COMMANDS = {
    "sweep": ["{}"],
    "sweep resume": ["--resume", "{}"],
    "sweep select": ["--select", "knee", "--run", "{}"],
    "sweep address": ["--address", "{}"],
    "extract": ["{}"],
    "store show": ["show", "{}"],
    "store verify": ["verify", "{}"],
    "store sites": ["sites", "{}"],
    "store import": ["import", "{}", "--out", "there"],
    "store import out": ["import", "x.npy", "--out", "{}"],
    "store import dataset": ["import", "x.npy", "--out", "there", "--dataset", "{}"],
    "store import model": ["import", "x.npy", "--out", "there", "--model={}"],
    "report": ["{}"],
    "runs": ["{}"],
    "show": ["{}"],
    "failures": ["{}"],
    "analyze": ["{}"],
    "analyze store": ["run", "--store", "{}"],
    "export": ["{}", "--to", "saelens", "--out", "there"],
    "export out": ["sae", "--to", "saelens", "--out", "{}"],
}


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_TRACKING_PASSWORD", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)


def nested(key, value):
    for part in reversed(key.split(".")):
        value = {part: value}
    return value


def main_of(command):
    from raysae.__main__ import VERBS

    module, function, _ = VERBS[command.split()[0]]
    return getattr(import_module(module), function)


@pytest.mark.parametrize("uri", URIS)
def test_a_recipe_with_a_secret_is_refused_and_not_echoed(uri, tmp_path):
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump({"records": {"tracking_uri": uri}}))
    for give in (
        lambda: load_recipe(file),
        lambda: load_recipe(None, [f"records.tracking_uri={uri}"]),
        lambda: parse_recipe({"records": {"tracking_uri": uri}}),
        lambda: raysae.sweep({"records": {"tracking_uri": uri}}),
    ):
        with pytest.raises(UserError) as caught:
            give()
        said = str(caught.value)
        assert "records.tracking_uri: holds" in said and "MLFLOW_TRACKING_" in said
        assert hidden(said)


@pytest.mark.parametrize("key", WAYS_IN)
@pytest.mark.parametrize("uri", [URIS[0], URIS[11], URIS[21], f"http://user:{CANARY} x@host"])
def test_every_key_refuses_a_secret(key, uri):
    value = [uri] if key == "sweep.warm_start" else uri
    with pytest.raises(UserError) as caught:
        parse_recipe(nested(key, value))
    assert f"{key}: holds" in str(caught.value) and hidden(str(caught.value))
    with pytest.raises(UserError) as caught:
        load_recipe(None, [f"{key}={uri}"])
    assert key in str(caught.value) and hidden(str(caught.value))


def test_sections_that_python_makes_refuse_too():
    for make in (
        lambda: RecordsConfig(tracking_uri=URIS[0]),
        lambda: raysae.Recipe(records={"tracking_uri": URIS[0]}),
        lambda: raysae.Recipe(seed=URIS[0]),
    ):
        with pytest.raises(ValueError, match="holds a user name") as caught:
            make()
        assert hidden(str(caught.value))


@pytest.mark.parametrize("text", ["see https://a@b.c {prompt}?", "https?://[^/@]+@x", "{prompt}@x"])
def test_texts_and_patterns_are_not_mistaken(text):
    recipe = parse_recipe(
        {"source": {"patterns": {"mine": "https?://[^/@]+@x"}, "text": "{prompt}@x"}}
    )
    assert recipe.source.text == "{prompt}@x"


@pytest.mark.parametrize(
    "content",
    [
        f"records:\n  tracking_uri: http://user:a: {CANARY}@host\n",
        f"records:\n  tracking_uri: [http://user:{CANARY}@host\n",
        f"a: http://user:{'x' * 40}{CANARY}@{'h' * 60}: b\n",
        f"records: http://user:{CANARY}@host\n",
        f"http://user:{CANARY}@host: 1\n",
        f"http://user:{CANARY}@host\n",
        f"password: {CANARY}\n",
        f"records: {{tracking_uri: 3, password: {CANARY}}}\n",
    ],
)
def test_a_wrong_recipe_is_refused_without_its_secret(content, tmp_path):
    file = tmp_path / "recipe.yaml"
    file.write_text(content)
    with pytest.raises(UserError) as caught:
        load_recipe(file)
    assert hidden(str(caught.value))


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("uri", [URIS[0], URIS[3], URIS[11], URIS[14], URIS[21]])
def test_every_command_refuses_before_any_work(command, uri, capsys, tmp_path):
    words = [word.format(uri) for word in COMMANDS[command]]
    assert run_command(main_of(command), words) == 2
    out, err = capsys.readouterr()
    assert "holds" in err and "environment" in err and hidden(out + err)
    assert not any(tmp_path.iterdir())


def test_print_config_and_dry_run_do_not_show_it(capsys):
    for flag in ("--print-config", "--dry-run"):
        assert run_command(main_of("sweep"), [flag, f"records.tracking_uri={URIS[0]}"]) == 2
        out, err = capsys.readouterr()
        assert "records.tracking_uri: holds" in err and hidden(out + err)


@pytest.mark.parametrize(
    "words", [["--password", CANARY], ["--log", f"token={CANARY}"], [f"hf_token={CANARY}"]]
)
def test_what_a_parser_says_of_wrong_words_is_hidden(words, capsys):
    with warnings.catch_warnings():
        try:
            run_command(main_of("sweep"), words)
        except SystemExit as left:
            assert left.code == 2
    out, err = capsys.readouterr()
    assert err and hidden((out + err).replace(f"config: {CANARY}", ""))


def test_an_unexpected_error_of_a_command_shows_no_secret(capsys):
    def command(arguments):
        print(f"reading {URIS[0]}")
        try:
            raise OSError(f"cannot open {URIS[11]}")
        except OSError as error:
            raise RuntimeError(f"{URIS[0]} does not answer") from error

    assert run_command(command, []) == 1
    out, err = capsys.readouterr()
    assert "Traceback" in err and "does not answer" in err and hidden(out + err)


def test_the_recorded_command_line_has_no_secret(monkeypatch):
    words = [
        "train.py",
        "--token",
        CANARY,
        f"--uri={URIS[0]}",
        "--api-key",
        CANARY,
        f"x={URIS[21]}",
    ]
    monkeypatch.setattr(sys, "argv", [*words, "--pad-token", "3", f"http://user:a {CANARY}@host"])
    assert hidden(json.dumps(_command()))
    assert _command()[:2] == ["train.py", "--token"] and _command()[-3:-1] == ["--pad-token", "3"]
    assert redacted_command(["--token", "--seed", "3"]) == ["--token", "--seed", "3"]


def test_errors_reasons_and_tracebacks_are_hidden():
    from raysae.cluster.pool_worker import failure_of
    from raysae.records.mlflow_refusal import reason_of

    error = RuntimeError(f"could not reach {URIS[0]}")
    outcome = failure_of(error)
    assert hidden(f"{outcome.failed} {outcome.trace} {traceback_of(error)} {reason_of(error)}")
    assert hidden(str(UserError(f"{URIS[11]}: not there")))
    with pytest.raises(RuntimeError) as caught, redacted_errors():
        raise KeyError(URIS[0])
    assert hidden("".join(traceback.format_exception(caught.value)).partition("RuntimeError")[2])
    assert caught.value.__suppress_context__
    with pytest.raises(KeyError), redacted_errors():
        raise KeyError("plain")


def test_an_import_with_a_secret_in_an_option_is_refused():
    for option in ("model", "dataset", "hookpoint"):
        with pytest.raises(UserError, match=f"--{option}: holds") as caught:
            ImportOptions(**{option: URIS[11]})
        assert hidden(str(caught.value))


def test_a_uri_given_in_python_is_refused():
    for call in (raysae.open_store, read_run):
        with pytest.raises(UserError, match="holds a user name") as caught:
            call(f"s3://KEY:{CANARY}@bucket/x")
        assert hidden(str(caught.value))


def test_metadata_of_an_sae_is_written_without_secrets(tmp_path):
    from raysae.sae import export_sae, load_sae
    from raysae.sae.checkpoint import save_sae

    settings = {"variant": "topk", "d_sae": 8, "k": 2}, {"epochs": 1, "batch_size": 32}
    rows = torch.randn(64, 4)
    sae = raysae.fit(settings[0], rows, settings[1], validation=rows).sae
    sae.metadata = {"dataset": {"id": URIS[11]}, "model": {"id": URIS[0]}, "training": {}}
    save_sae(sae, tmp_path / "own")
    export_sae(sae, tmp_path / "exported", "saelens")
    for file in tmp_path.rglob("*.json"):
        assert hidden(file.read_text())
    assert sae.metadata["model"]["id"] == URIS[0]
    assert hidden(json.dumps(load_sae(tmp_path / "own").metadata))


def old_run(folder, **keys):
    """A run folder as an earlier version wrote it, with a secret in its recipe."""
    with open_run(
        parse_recipe({"name": "old", "runs_dir": str(folder), "source": None, "store": "x"})
    ) as run:
        path = run.path
    data = yaml.safe_load((path / "config.yaml").read_text())
    (path / "config.yaml").write_text(yaml.safe_dump({**data, **keys}))
    return path


def test_an_old_run_with_a_password_is_read_without_it(tmp_path, capsys, monkeypatch):
    path = old_run(tmp_path / "runs", records={"tracking_uri": f"http://user:{CANARY}@host:5000/x"})
    recipe = load_run(path)
    said = capsys.readouterr().err
    assert "records.tracking_uri holds" in said and "MLFLOW_TRACKING_URI" in said and hidden(said)
    assert recipe.records.tracking_uri == "http://host:5000/x"
    assert hidden(load_recipe(path / "config.yaml").to_yaml())
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:{CANARY}@host:5000/x")
    assert tracking_uri(read_run(path)) == f"http://me:{CANARY}@host:5000/x"
    with open_run(recipe):
        pass
    assert hidden((path / "config.yaml").read_text())


def test_the_address_of_the_environment_is_used_and_not_shown(monkeypatch, tmp_path):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://user:{CANARY}@127.0.0.1:9/")
    recipe = parse_recipe({"name": "a", "runs_dir": str(tmp_path), "source": None, "store": "x"})
    with open_run(recipe) as run:
        assert CANARY in tracking_uri(run)
        assert look_at_records(tracking_uri(run)) == "http://user:***@127.0.0.1:9/"
        assert hidden(run.recipe.to_yaml())


def test_json_lines_and_the_page_hide_secrets(capsys):
    from raysae.console.board import emit, set_log
    from raysae.report.page import template

    set_log("json")
    try:
        emit(
            "outcome",
            run=Path("runs/x"),
            failures=[f"trial 0: {URIS[0]}"],
            choice={"password": CANARY},
        )
    finally:
        set_log("auto")
    line = capsys.readouterr().out
    assert json.loads(line)["run"] == "runs/x" and hidden(line)
    page = template("models.html").render(
        title="x",
        kind="model",
        rows=[],
        refused={"a": f"{URIS[11]} & more"},
        stability=False,
        charts=[],
        written="now",
    )
    assert hidden(page) and "***@bucket/runs &amp; more" in page


def test_the_console_hides_secrets_without_a_command(capsys):
    from raysae.console.board import console

    console.print(f"trial 0: {URIS[0]}")
    assert "***" in (said := capsys.readouterr().out) and hidden(said)


RECIPE = {
    "name": "small",
    "source": None,
    "store": "store",
    "training": {"epochs": 1, "batch_size": 64, "evaluations": 1},
    "sae": {"k": 2},
    "sweep": {
        "trials": 2,
        "sampler": "grid",
        "space": {"sae.d_sae": {"choices": [16, 32]}},
    },
    "resources": {"cpus": 2},
}


@pytest.mark.long
def test_a_run_with_secrets_in_the_environment_leaves_no_trace(tmp_path):
    """Everything that a run writes, prints and hands to Ray, with a secret in each variable."""
    secrets = {
        "MLFLOW_TRACKING_URI": f"http://user:{CANARY}@127.0.0.1:9/",
        "AWS_SECRET_ACCESS_KEY": CANARY,
        "HF_TOKEN": CANARY,
        "HTTP_PROXY": f"http://user:{CANARY}@127.0.0.1:9",
        "NO_PROXY": "127.0.0.1,localhost",
    }
    temporary = Path(f"/tmp/canary-{os.getpid()}")  # a socket's path is short
    temporary.mkdir()
    environment = {**os.environ, **secrets, "TMPDIR": str(temporary), "RAY_TMPDIR": str(temporary)}
    Path("recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    commands = (
        [
            "raysae.store",
            "synthetic",
            "--out",
            "store",
            "--rows",
            "2000",
            "--d-in",
            "8",
            "--atoms",
            "16",
        ],
        ["raysae.sweep", "recipe.yaml", "--log", "json"],
        ["raysae.sweep", "--resume", "runs/small"],
        ["raysae.report", "runs/small"],
        ["raysae.export", "runs/small/sweet_spot", "--to", "saelens", "--out", "exported"],
    )
    said = ""
    try:
        for words in commands:
            done = subprocess.run(
                [sys.executable, "-m", *words],
                env=environment,
                cwd=tmp_path,
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 0, done.stdout + done.stderr
            said += done.stdout + done.stderr
        assert hidden(said) and "did not take" in said
        found = [*tmp_path.rglob("*"), *temporary.rglob("*")]
        assert [str(file) for file in found if file.is_file() and not _clean(file)] == []
        assert any("session_" in str(file) for file in found)
    finally:
        import shutil

        shutil.rmtree(temporary, ignore_errors=True)


def _clean(file):
    content = file.read_bytes()
    return not any(form.encode() in content for form in FORMS)
