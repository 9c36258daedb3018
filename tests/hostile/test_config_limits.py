"""Recipes and arguments that are too large, too deep or no recipe at all: one sentence, exit code 2."""

import os

import pytest

from raysae.config import load_recipe
from raysae.console.command_line import REFUSED, run_command
from raysae.errors import UserError

LONG, LONGER = "a" * 300, "b" * 10_000


def refused(capsys, command, *arguments):
    """The one message of a command that refuses its arguments."""
    assert run_command(command, list(arguments)) == REFUSED
    message = capsys.readouterr().err
    assert message.startswith("error: ") and "Traceback" not in message
    assert len(message) < 100_000, "the message does not repeat what is too long"
    return message


@pytest.fixture
def sweep(monkeypatch, tmp_path):
    """The sweep command, in an empty folder; it may not get as far as to start Ray."""
    import ray

    from raysae.pipeline.sweep_command import main

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ray, "init", lambda *_, **__: pytest.fail("Ray was started"))
    return main


@pytest.mark.parametrize(
    "key", ["sweep.configs", "seed", "source.layers", "sweep", "nothing", "models"]
)
@pytest.mark.parametrize(
    "value", ["[" * 5000, "[" * 100_000, "[" * 60 + "]" * 60, "{a: " * 5000, "- " * 5000]
)
def test_values_nested_too_deeply(sweep, capsys, key, value):
    message = refused(capsys, sweep, f"{key}={value}")
    assert key in message


@pytest.mark.parametrize("start", ["", "source.", "sweep.space.", "models."])
def test_keys_of_too_many_parts(sweep, capsys, start):
    assert "no key is so long" in refused(capsys, sweep, f"{start}{'a.' * 5000}a=1")
    assert "no key is so long" in refused(capsys, sweep, f"{start}{LONGER}=1")


@pytest.mark.parametrize(
    "override",
    ["[" * 5000, "[" * 5000 + "=1", "é=1", "\u202esource=1", "a\0b=1", "seed=\0", "source.model=a\0",
     "\udcff=1", "source.model=\udcff", "name=\udcff"],
)  # fmt: skip
def test_odd_overrides(sweep, capsys, override):
    refused(capsys, sweep, override)


NUMBERS = (
    "1e400", "-1e400", ".inf", "-.INF", ".nan", "1" + "0" * 400, "1" + "0" * 5000, "0x" + "f" * 5000,
    "0b" + "1" * 100, "1:30", "190:20:30", "0o17", "2020-01-01", "9223372036854775808",
    "!!bool maybe", "!!int abc", "!!float abc", "!!int ''", "!!binary aGk=", "!!timestamp x",
)  # fmt: skip
NUMBER_KEYS = (
    "seed", "training.lr", "training.batch_size", "source.max_bytes", "source.validation", "sae.d_sae",
    "resources.cpus_per_trial", "resources.max_concurrent", "resources.memory", "sweep.max_seconds",
    "select.max_l0",
)  # fmt: skip


@pytest.mark.parametrize("key", NUMBER_KEYS)
def test_what_is_no_sensible_number(key, tmp_path):
    for number in NUMBERS:
        with pytest.raises(UserError) as refusal:
            load_recipe(None, [f"{key}={number}"])
        assert key in str(refusal.value) and len(str(refusal.value)) < 1000


@pytest.mark.parametrize(
    "size", ["1e400", "1e400 GB", "1e308 TB", "9" * 400 + " GB", "9" * 100_000 + "GB", "1e99999 k"]
)
@pytest.mark.parametrize("key", ["source.max_bytes", "source.max_tokens", "resources.memory"])
def test_sizes_beyond_all_sizes(key, size):
    for written in (size, f"'{size}'"):
        with pytest.raises(UserError, match=key):
            load_recipe(None, [f"{key}={written}"])


@pytest.mark.parametrize("value", [10**400, -(10**400), float("inf"), float("nan")])
@pytest.mark.parametrize("key", ["d_sae", "k"])
def test_numbers_of_a_dictionary(key, value):
    from raysae.sae.config import TopKConfig

    with pytest.raises(ValueError, match=key):
        TopKConfig(**{key: value})


FILES = {
    "binary": (bytes(range(256)) * 4, "not UTF-8"),
    "utf-16 without a mark": ("seed: 1".encode("utf-16-le"), "U\\+0000"),
    "empty": (b"", "is empty"),
    "a list": (b"[1, 2]", "expected keys and values"),
    "a scalar": (b"x", "expected keys and values"),
    "too large": (b"#" + b"x" * 3_000_000, "more than 2,000,000 bytes"),
    "NUL": (b'name: "a\\0b"', "NUL"),
    "half a character": (b'source: {model: "\\ud800"}', "source.model: holds half a character"),
    "a key twice": (b"source: {model: a, model: b}", "source.model is given twice"),
    "a set": (b"models: !!set {a}", "!!set"),
    "a python tag": (b"seed: !!python/object/apply:os.getpid []", "!!python"),
    "a long key": (b"? " + b"k" * 900_000 + b"\n: 1", "unknown key"),
    "many keys": (b"\n".join(b"k%d: 1" % n for n in range(5000)), "more of the kind"),
}


@pytest.mark.parametrize("case", FILES)
def test_files_that_are_no_recipe(case, sweep, capsys, tmp_path):
    content, words = FILES[case]
    (tmp_path / "r.yaml").write_bytes(content)
    with pytest.raises(UserError, match=words):
        load_recipe(tmp_path / "r.yaml")
    assert "r.yaml" in refused(capsys, sweep, "r.yaml")


@pytest.mark.parametrize(
    "name", ["folder", "pipe", "/dev/zero", "/dev/null", "none.yaml", LONG, LONGER]
)
def test_places_that_are_no_file(name, sweep, capsys, tmp_path):
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    message = refused(capsys, sweep, name)
    assert name[:50] in message


def test_a_regular_file_is_asked_for(sweep, capsys, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    assert "is no regular file" in refused(capsys, sweep, "pipe")


PATH_KEYS = (
    "name", "runs_dir", "working_dir", "store", "source.model", "source.dataset",
    "source.dataset_config", "source.split_by", "source.chat_column", "source.text",
)  # fmt: skip


@pytest.mark.parametrize("key", PATH_KEYS)
@pytest.mark.parametrize("value", [f"/{LONG}", LONGER, "~" + LONG], ids=["long", "longer", "home"])
def test_long_names_in_a_recipe(key, value, sweep, capsys, tmp_path):
    (tmp_path / "d.jsonl").write_text('{"q": "x"}\n')
    others = [] if key == "source.dataset" else ["source.dataset=d.jsonl"]
    refused(capsys, sweep, f"{key}={value}", *others)
    assert {path.name for path in tmp_path.iterdir()} == {"d.jsonl"}


NAMES = ["long", "longer", "NUL", "in a folder", "home"]


def commands():
    from raysae import export
    from raysae.activations import store_command
    from raysae.extraction import extract_command
    from raysae.pipeline import sweep_command
    from raysae.report import report_command

    return {
        "sweep --resume": (sweep_command.main, "--resume", "NAME"),
        "sweep --run": (sweep_command.main, "--select", "knee", "--run", "NAME"),
        "sweep": (sweep_command.main, "NAME"),
        "sweep --address": (sweep_command.main, "--address", "NAME"),
        "extract": (extract_command.main, "NAME"),
        "extract --address": (extract_command.main, "--address", "NAME"),
        "report": (report_command.main, "NAME"),
        "export": (export.main, "NAME", "--to", "saelens", "--out", "out"),
        "store show": (store_command.main, "show", "NAME"),
        "store sites": (store_command.main, "sites", "NAME"),
        "store verify": (store_command.main, "verify", "NAME"),
        "store import": (
            store_command.main, "import", "NAME", "--out", "s", "--layer", "0", "--position", "all",
        ),
        "store import --out": (
            store_command.main, "import", "x.npy", "--out", "NAME", "--layer", "0", "--position", "all",
        ),
    }  # fmt: skip


@pytest.mark.parametrize("name", [LONG, LONGER, "a\0b", f"x/{LONG}", "~" + LONG], ids=NAMES)
@pytest.mark.parametrize("which", list(commands()))
def test_long_and_broken_names_in_every_command(which, name, capsys, tmp_path, monkeypatch):
    import numpy as np

    monkeypatch.chdir(tmp_path)
    np.save("x.npy", np.zeros((4, 2), dtype=np.float32))
    command, *arguments = commands()[which]
    refused(capsys, command, *(name if one == "NAME" else one for one in arguments))


def test_a_grid_is_counted_before_it_is_made():
    choices = "{choices: [" + ",".join(map(str, range(1, 60))) + "]}"
    keys = ("sae.d_sae", "sae.k", "training.epochs", "training.batch_size", "training.evaluations")
    space = ", ".join(f"{key}: {choices}" for key in keys)
    with pytest.raises(UserError, match=r"the grid holds 714,924,299 configs"):
        load_recipe(None, ["sweep.sampler=grid", f"sweep.space={{{space}}}"])


def test_ray_is_not_asked_for_a_worker_on_each_of_a_million_cores():
    with pytest.raises(UserError, match=r"resources\.cpus"):
        load_recipe(None, ["resources.cpus=1000000"])
