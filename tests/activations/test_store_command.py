"""The store command: what it prints, its exit codes, one clear message for a user's mistake."""

import json
import subprocess
import sys

import pytest

import raysae
from raysae.activations.show import (
    around_token,
    draw_samples,
    printable,
    samples_table,
    sites_table,
)
from raysae.activations.store_command import main
from raysae.console.command_line import DONE, PARTLY, REFUSED, run_command
from raysae.sites import Site
from tests.activations.test_verify import FIRST, TEXTS, edit, write_text_store

HOSTILE = (
    "[bold red]not markup[/] \x1b[31mred\x1b[0m\r\x08 \u202egnol\u202c tail\x00\n \u200b7\ud7ff "
    + "x" * 4000
    + " 8 [/]"
)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("store_command") / "s"
    write_text_store(folder)
    return folder


@pytest.fixture
def own_store(tmp_path):
    write_text_store(tmp_path / "s")
    return tmp_path / "s"


@pytest.fixture
def synthetic(tmp_path):
    assert run("synthetic", "--out", tmp_path / "w", "--rows", 300, "--d-in", 8, "--sites", 2) == 0
    return tmp_path / "w"


def run(*arguments):
    return run_command(main, [str(argument) for argument in arguments])


def told(capsys, *arguments):
    capsys.readouterr()
    assert run(*arguments) == DONE
    return capsys.readouterr().out


def refused(capsys, *arguments):
    capsys.readouterr()
    assert run(*arguments) == REFUSED
    out, err = capsys.readouterr()
    assert err.startswith("error: ") and "Traceback" not in err + out
    return err


def test_verify_says_sound(capsys, store):
    out = told(capsys, "verify", store)
    assert out.count("\n") == 1
    assert out.startswith(f"{store}: 4 sites, ") and out.endswith(": sound\n")


def test_verify_lists_problems_and_notes(capsys, own_store):
    (own_store / FIRST).unlink()
    edit(own_store, lambda m: m["sites"][3].update(total_variance=1.0))
    (own_store / "[red]:bug:.txt").write_text("mine")
    assert run("verify", own_store) == PARTLY
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "note: [red]:bug:.txt: not listed in the manifest"
    assert lines[1].split() == ["file", "found", "expected"]
    assert lines[2].startswith(f"{FIRST}  missing") and "a file of" in lines[2]
    assert lines[3].startswith("layer=01/position=00") and lines[3].endswith("  1")
    assert lines[4].endswith(": 2 problems") and len(lines) == 5


@pytest.mark.parametrize("verb", ["verify", "show", "sites"])
def test_no_readable_manifest_is_refused(capsys, tmp_path, verb):
    assert "no manifest.json" in refused(capsys, verb, tmp_path)
    (tmp_path / "manifest.json").write_text("{")
    assert "not valid JSON" in refused(capsys, verb, tmp_path)


def test_show_tells_where_a_store_came_from(capsys, store):
    out = told(capsys, "show", store)
    facts = dict(line.split("  ", 1) for line in out.splitlines()[:16] if "  " in line)
    facts = {key.strip(): value.strip() for key, value in facts.items()}
    assert facts["provenance"].startswith("model")
    assert facts["model"] == "tiny, revision none, 2 layers"
    assert facts["weights"] == "sha256 " + "ab" * 32
    assert facts["dataset"] == "cups, 60 documents, 60 sequences"
    assert facts["activations"] == "bfloat16, d_in 6" and facts["hookpoint"] == "resid_post"
    assert facts["context"] == "64 tokens at most" and facts["pattern numbers"] == r"\d+"
    assert facts["split"].startswith("0.2 validation, 0.2 test") and facts["seed"] == "3"
    assert facts["digest"] == raysae.open_store(store).digest
    assert facts["sequences"] == "60 with their texts, in 3 files"
    assert "at 4 sites" in facts["rows"] and "12 shards" in facts["rows"]


def test_show_lists_the_sites(capsys, store):
    lines = told(capsys, "show", store).splitlines()
    entry = raysae.open_store(store).entry(Site(1, -1))
    row = next(line for line in lines if line.startswith("layer=01/position=-1")).split()
    counts = [entry.rows.train, entry.rows.validation, entry.rows.test, len(entry.shards)]
    assert row[1:5] == [str(count) for count in counts]
    assert row[6:] == [f"{entry.mean_square_norm**0.5:.4g}", f"{entry.total_variance:.4g}", "0"]


def test_show_marks_the_tokens_of_its_samples(capsys, store):
    site = "layer=00/position=numbers"
    out = told(capsys, "show", store, "--site", site, "--samples", 7)
    assert "layer=01/position=00" not in out
    samples = draw_samples(raysae.open_store(store), Site(0, "numbers"), 7)
    lines = out.splitlines()[-7:]
    for sample, line in zip(samples, lines, strict=True):
        words = line.split()
        assert words[:4] == [
            str(sample.sequence),
            sample.split,
            str(sample.token_index),
            str(sample.token_id),
        ]
        text = line.split("  ")[-1].strip("…")
        marked = text[text.index("«") + 1 : text.index("»")]
        assert marked.isdigit()
        assert text.replace("«", "").replace("»", "") in TEXTS[sample.sequence]
    assert told(capsys, "show", store, "--site", site, "--samples", 7) == out
    assert "picked at random" not in told(capsys, "show", store, "--samples", 0)


def test_a_synthetic_store_says_so(capsys, synthetic):
    out = told(capsys, "show", synthetic)
    assert "SYNTHETIC" in out and '"atoms": 128' in out and "no texts in the store" in out
    assert "first values" in out and "seed" in out
    assert (synthetic / "truth.safetensors").is_file()
    assert "sound" in told(capsys, "verify", synthetic)


def test_show_names_what_an_import_read(capsys, tmp_path):
    import numpy as np

    np.save(tmp_path / "acts.npy", np.random.default_rng(0).normal(size=(60, 4)).astype("float32"))
    assert (
        run(
            "import",
            tmp_path / "acts.npy",
            "--out",
            tmp_path / "s",
            "--layer",
            3,
            "--position",
            "all",
            "--seed",
            9,
        )
        == 0
    )
    out = told(capsys, "show", tmp_path / "s")
    assert "imported: another tool wrote it" in out and "acts.npy" in out
    assert "seed         9" in out
    assert "sound" in told(capsys, "verify", tmp_path / "s")


def test_show_tells_how_an_import_read_its_file(capsys, tmp_path):
    import numpy as np

    mask = np.arange(6) < np.arange(40)[:, None] % 5 + 1
    rows = np.random.default_rng(0).normal(size=(40, 6, 4)).astype("float32")
    ids = np.zeros((40, 6), int)
    np.savez(tmp_path / "acts.npz", acts=rows, attention_mask=mask, input_ids=ids)
    place = ("--layer", 3, "--position", "all")
    assert run("import", tmp_path / "acts.npz", "--out", tmp_path / "s", *place) == 0
    out = told(capsys, "show", tmp_path / "s")
    assert "mask from attention_mask: 120 of 240 rows are padding and left out" in out
    assert "35 of 40 sequences have the same tokens as an earlier one" in out


def test_an_unknown_site_is_refused_with_what_there_is(capsys, store):
    message = refused(capsys, "show", store, "--site", "layer=7/position=1")
    assert "no site layer 7, position 1; its layers are 0, 1" in message
    assert "such as layer=08/position=03" in refused(capsys, "show", store, "--site", "[red]x")


def test_show_refuses_altered_files(capsys, own_store):
    part = own_store / "sequences" / "part-00000.parquet"
    part.write_bytes(b"x" * part.stat().st_size)
    message = refused(capsys, "show", own_store)
    assert "not a readable Parquet file of sequences" in message and "verify" in message
    for file in own_store.glob("layer=00/position=all/*.parquet"):
        file.write_bytes(b"x" * file.stat().st_size)
    edit(own_store, lambda m: m.update(sequences=[]))
    assert "altered" in refused(capsys, "show", own_store, "--site", "layer=00/position=all")


def test_sites_for_a_shell_and_for_a_machine(capsys, store):
    lines = told(capsys, "sites", store).splitlines()
    opened = raysae.open_store(store)
    assert [line.split()[0] for line in lines] == [site.folder for site in opened.sites]
    rows = json.loads(told(capsys, "sites", store, "--json"))
    for line, row, site in zip(lines, rows, opened.sites, strict=True):
        entry = opened.entry(site)
        assert [int(word) for word in line.split()[1:]] == list(entry.rows.model_dump().values())
        assert row["rows"] == entry.rows.model_dump() and row["shards"] == 3
        assert (row["site"], row["layer"], row["position"]) == (
            site.folder,
            site.layer,
            site.position,
        )
        assert row["bytes"] == sum(shard.bytes for shard in entry.shards)


def test_hostile_texts_are_shown_safely(capsys, tmp_path):
    write_text_store(tmp_path / "[blink]s", [HOSTILE] * 40)
    for site in ("layer=00/position=all", "layer=00/position=numbers"):
        out = told(capsys, "show", tmp_path / "[blink]s", "--site", site, "--samples", 40)
        assert all(c.isprintable() or c == "\n" for c in out)
        assert max(map(len, out.splitlines())) < 400
        assert "[blink]s" in out
    arguments = "--site", "layer=00/position=all", "--samples", 500
    out = told(capsys, "show", tmp_path / "[blink]s", *arguments)
    assert "[bold red]" in out.replace("«", "").replace("»", "")
    assert r"\x1b" in out and r"\u202e" in out and r"\x00\n" in out


def test_a_terminal_shows_the_token_in_bold(store):
    sample = draw_samples(raysae.open_store(store), Site(0, "numbers"), 1)[0]
    text = around_token(sample, 8, bold=True)
    (span,) = [span for span in text.spans if "bold" in str(span.style)]
    assert text.plain[span.start : span.end].isdigit() and "«" not in text.plain


def test_what_has_no_place_in_the_text_is_said(store):
    from dataclasses import replace

    sample = draw_samples(raysae.open_store(store), Site(0, "all"), 1)[0]
    special = replace(sample, token_index=0)
    assert around_token(special, 8, False).plain == "(a token without a place in the text)"
    for unknown in (replace(sample, text=None), replace(sample, token_index=999)):
        assert around_token(unknown, 8, False).plain == "(the store has no text for it)"


def test_tables_fit_a_terminal_of_100_columns(store):
    from rich.console import Console

    opened = raysae.open_store(store)
    samples = draw_samples(opened, opened.sites[0], 5)
    console = Console(width=100, force_terminal=True, color_system=None)
    for table, height in (
        (sites_table(opened.manifest.sites), 6),
        (samples_table(samples, 100, bold=True), 7),
    ):
        with console.capture() as capture:
            console.print(table)
        lines = capture.get().splitlines()
        assert len(lines) == height and max(map(len, lines)) <= 100


@pytest.mark.parametrize("text", ["plain", "ünïcödé «»", "日本語"])
def test_printable_text_stays(text):
    assert printable(text) == text
    assert printable(f"{text}\x07\ud800") == text + r"\x07\ud800"


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("--p", "0", "--p 0.0: expected a probability above 0 and at most 1"),
        ("--p", "1.5", "--p 1.5: expected a probability"),
        ("--p", "nan", "--p nan: expected a probability"),
        ("--rows", "0", "--rows 0: expected a whole number from 1"),
        ("--d-in", "-3", "--d-in -3: expected a whole number from 1"),
        ("--seed", "-1", "--seed -1: expected a whole number from 0"),
        ("--shard-rows", "0", "--shard-rows 0: expected"),
        ("--validation", "0.95", "leave rows for training"),
    ],
)
def test_a_world_that_cannot_be_is_refused_before_any_work(capsys, tmp_path, option, value, words):
    assert words in refused(capsys, "synthetic", "--out", tmp_path / "w", f"{option}={value}")
    assert not list(tmp_path.iterdir())


def test_what_is_there_is_not_overwritten(capsys, synthetic, tmp_path):
    before = {file: file.read_bytes() for file in synthetic.rglob("*") if file.is_file()}
    assert "holds a store already" in refused(capsys, "synthetic", "--out", synthetic)
    assert {f: f.read_bytes() for f in synthetic.rglob("*") if f.is_file()} == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("mine")
    assert "holds files but no" in refused(capsys, "synthetic", "--out", tmp_path / "mine")
    message = refused(capsys, "synthetic", "--out", tmp_path / "mine" / "thesis.txt")
    assert "is a file" in message
    assert "Not a directory" in refused(
        capsys, "synthetic", "--out", tmp_path / "mine" / "thesis.txt" / "w"
    )


def test_synthetic_makes_what_was_asked_for(capsys, tmp_path):
    out = told(
        capsys, "synthetic", "--out", tmp_path / "w", "--rows", 200, "--atoms", 10, "--d-in", 6, "--p",
        0.5, "--seed", 4, "--dtype", "bfloat16", "--validation", 0.3, "--test", 0, "--shard-rows", 70,
    )  # fmt: skip
    manifest = raysae.open_store(tmp_path / "w").manifest
    assert manifest.source["world"] == {"d_in": 6, "atoms": 10, "p": 0.5, "seed": 4}
    assert manifest.dtype == "bfloat16" and manifest.split == {"validation": 0.3, "test": 0.0}
    assert len(manifest.sites[0].shards) == 3 and manifest.sites[0].rows.test == 0
    assert "truth.safetensors" in out and "synthetic" in out and "200 rows" in out


@pytest.mark.parametrize("verb", ["verify", "show", "sites", "synthetic", "import"])
def test_help_of_every_verb(capsys, verb):
    with pytest.raises(SystemExit) as leaving:
        main([verb, "--help"])
    assert leaving.value.code == 0 and f"raysae.store {verb}" in capsys.readouterr().out


def test_the_command_as_a_shell_sees_it(store, tmp_path):
    def shell(*arguments):
        return subprocess.run(
            [sys.executable, "-m", "raysae.store", *arguments],
            cwd=tmp_path, capture_output=True, text=True, timeout=600, check=False,
        )  # fmt: skip

    assert shell("sites", str(store)).stdout.count("\n") == 4
    bad = shell("verify", "nowhere")
    assert (bad.returncode, bad.stdout) == (REFUSED, "") and bad.stderr.count("\n") == 1


def test_a_live_store_says_what_is_computed_while_training(tmp_path, monkeypatch, capsys):
    from tests.extraction.local_pool import extracted_here, live_recipe

    store, _ = extracted_here(monkeypatch, live_recipe(tmp_path / "store"))
    capsys.readouterr()
    path, site = str(store.path), store.sites[0]
    total = sum(store.entry(one).rows.train for one in store.sites)
    head = sum(map(store.head_rows, store.sites))
    assert main(["show", path]) == 0
    shown = capsys.readouterr().out
    assert (
        f"{total:,} training rows are computed while training, {head:,} of them are on disk"
        in shown
    )
    assert main(["sites", path]) == 0
    listed = capsys.readouterr().out
    assert f"{site.folder}  {store.entry(site).rows.train}" in listed and "(live: " in listed
    assert main(["sites", path, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["head"] == store.head_rows(site)
    assert main(["verify", path]) == 0
    assert "sound" in capsys.readouterr().out
