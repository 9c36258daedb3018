"""The command: its arguments, what it tells, and that a mistake is told in one message."""

import argparse

import numpy as np
import pytest

from raysae.activations import open_store
from raysae.activations.importing import import_command as command
from raysae.activations.importing.import_command import Meter, add_arguments
from raysae.console.command_line import DONE, REFUSED, run_command
from raysae.sites import Site
from tests.activations.importing.foreign import FORMATS, SEQUENCE, places, rows_of, stored


def main(arguments):
    parser = argparse.ArgumentParser(prog="import")
    add_arguments(parser)
    return command.run(parser.parse_args([str(argument) for argument in arguments]))


def test_it_imports_and_tells_what_it_found_and_did(tmp_path, capsys):
    file = FORMATS["pt dictionary"].write(tmp_path, rows_of("bfloat16"))
    arguments = [file, "--out", tmp_path / "s", "--layer", "3", "--position", "all"]
    assert run_command(main, arguments) == DONE
    told = capsys.readouterr().out
    assert f"Found: {file} (pt), 300 rows, d_in 8, bfloat16, shape [300, 8]" in told
    assert "sequence from metadata.problem_ids" in told
    assert "layer 3, position all: 300 rows, 0.000 GB as bfloat16" in told
    assert "1 site added, 300 rows of 8 bfloat16, 0 rows dropped" in told
    assert "GB/s" in told and f"raysae.store show {tmp_path / 's'}" in told


@pytest.mark.parametrize("typed", [["--position", "-1"], ["--position=-1"]])
def test_positions_from_the_end_can_be_typed(tmp_path, typed):
    file = FORMATS["npy tokens"].write(tmp_path, rows_of("float32"))
    assert main([file, "--out", tmp_path / "s", "--layer", "0", *typed]) == DONE
    assert open_store(tmp_path / "s").sites == [Site(0, -1)]


def test_every_option_reaches_the_store(tmp_path):
    rows = rows_of("bfloat16")
    rows[5, 5] = float("inf")
    np.save(tmp_path / "ids.npy", SEQUENCE)
    typed = (
        "--layer 2 --position tokens --d-in 8 --raw-dtype bfloat16 --dtype float32 --validation 0.3 "
        "--test 0 --seed 4 --non-finite drop --shard-rows 90 --model gpt2 --dataset pile "
        "--hookpoint mlp_out"
    )
    file = FORMATS["raw"].write(tmp_path, rows)
    arguments = [file, "--out", tmp_path / "s", "--sequences", tmp_path / "ids.npy"]
    assert main([*arguments, *typed.split()]) == DONE
    manifest = open_store(tmp_path / "s").manifest
    assert (manifest.model, manifest.dataset) == ({"id": "gpt2"}, {"id": "pile"})
    assert (manifest.hookpoint, manifest.dtype) == ("mlp_out", "float32")
    assert manifest.split == {"validation": 0.3, "test": 0.0}
    entry = manifest.sites[0]
    assert (entry.site, entry.dropped, len(entry.shards)) == (Site(2, "tokens"), 1, 4)
    assert manifest.source["imports"][0]["options"]["seed"] == 4


def test_the_options_of_padding_and_dimensions_reach_the_import(tmp_path, capsys):
    ids = np.random.default_rng(0).integers(1, 50, (40, 3))
    ids[:, 2] = 0
    content = {"acts": np.random.default_rng(0).standard_normal((2, 40, 3, 6)), "token_ids": ids}
    np.savez(
        tmp_path / "x.npz",
        **{k: v.astype(np.float32) if v.dtype == float else v for k, v in content.items()},
    )
    typed = ["--axes", "layer,sequence,token,d_in", "--pad-token", "0", "--position", "-1"]
    assert main([tmp_path / "x.npz", "--out", tmp_path / "s", *typed]) == DONE
    told = capsys.readouterr().out
    assert "dimensions layer 2, sequence 40, token 3, d_in 6" in told
    assert "padded with 0: 80 of 240 rows are padding and left out" in told
    assert "the split follows from the tokens (token_ids)" in told
    store = open_store(tmp_path / "s")
    assert store.sites == [Site(0, -1), Site(1, -1)]
    record = store.manifest.source["imports"][0]
    assert record["options"]["pad_token"] == 0
    assert any("80 of 240 rows" in said for said in record["read_as"])


def test_keys_may_be_repeated(tmp_path):
    import torch

    torch.save(
        {"x": rows_of("float16"), "who": torch.from_numpy(SEQUENCE), "l": 3}, tmp_path / "x.pt"
    )
    keys = ["--key", "sequence=who", "--key", "layer=l", "--key", "activation=x"]
    assert main([tmp_path / "x.pt", "--out", tmp_path / "s", "--position", "0", *keys]) == DONE
    assert open_store(tmp_path / "s").sites == [Site(3, 0)]


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ([], "error: .*does not say its layer; give --layer L"),
        (["--key", "layer"], "--key layer: expected ROLE=NAME"),
        (["--key", "layer=a", "--key", "layer=b"], "given twice"),
        (["--layer", "1", "--position", "0", "--dtype", "int8"], "--dtype int8: expected one of"),
        (["--layer", "1", "--position", "UP"], "--position UP: expected a number"),
        (["--layer", "1", "--position", "0", "--shard-rows", "0"], "--shard-rows 0"),
    ],
)
def test_a_mistake_is_one_message_and_exit_code_2(tmp_path, capsys, typed, words):
    import re

    file = FORMATS["npy matrix"].write(tmp_path, rows_of("float32"))
    assert run_command(main, [file, "--out", tmp_path / "s", *typed]) == REFUSED
    told = capsys.readouterr().err
    assert re.search(words, told)
    assert "Traceback" not in told


def test_dropped_rows_and_notes_are_told(tmp_path, capsys):
    rows = rows_of("float64")
    rows[7] = float("nan")
    file = FORMATS["npy matrix"].write(tmp_path, rows)
    typed = ["--layer", "3", "--position", "all", "--non-finite", "drop"]
    assert main([file, "--out", tmp_path / "s", *typed]) == DONE
    told = capsys.readouterr().out
    assert "299 rows of 8 float32, 1 row dropped" in told
    assert "note: the file's float64 values are stored as float32" in told
    wanted = places(rows.float(), "row")
    assert stored(tmp_path / "s", Site(3, "all")) == {k: v for k, v in wanted.items() if k[0] != 7}


def test_brackets_in_a_name_are_printed_as_they_are(tmp_path, capsys):
    file = FORMATS["npy matrix"].write(tmp_path, rows_of("float16"))
    file = file.rename(tmp_path / "a[bold]b[red].npy")
    assert main([file, "--out", tmp_path / "s", "--layer", "3", "--position", "all"]) == DONE
    assert "a[bold]b[red].npy" in capsys.readouterr().out


def test_a_long_import_tells_how_far_it_is(capsys, monkeypatch):
    monkeypatch.setattr(command, "LINE_SECONDS", 0.0)
    meter = Meter()
    meter("writing", 0, 100)
    meter("writing", 50, 100)
    assert "writing: 50 of 100 rows" in capsys.readouterr().out
