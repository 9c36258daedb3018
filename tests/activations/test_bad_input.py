"""Bad input as a user meets it: through the commands, one clear message, nothing left behind."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import raysae
from raysae.activations import Site, store_command
from raysae.activations.schema import D_IN_KEY, DTYPE_KEY
from raysae.activations.splits import split_of
from raysae.activations.synthetic import SuperpositionWorld, write_synthetic_store
from raysae.activations.verify import verify
from raysae.console.command_line import DONE, PARTLY, REFUSED, run_command
from raysae.extraction import extract_command
from raysae.pipeline import sweep_command
from raysae.pocket import POCKET_FOLDER
from raysae.storage.files import sha256_of

SHARD = "layer=00/position=all/part-00000.parquet"
OTHER_SITE = "layer=01/position=all/part-00000.parquet"


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bad_input") / "s"
    write_synthetic_store(
        folder, SuperpositionWorld(d_in=8, atoms=16), 400, sites=2, shard_rows=250
    )
    return folder


@pytest.fixture
def store(sound, place):
    """A sound store of two sites, in the folder ``s`` of where we stand, to be damaged."""
    shutil.copytree(sound, place / "s")
    return place / "s"


def refused(capsys, command, *arguments):
    """Run a command in this process; its one message."""
    capsys.readouterr()
    assert run_command(command.main, [str(argument) for argument in arguments]) == REFUSED
    out, err = capsys.readouterr()
    assert "Traceback" not in err + out
    assert err.startswith("error: ") and "\nerror: " not in err
    return err


SWEEP = [
    "source=null", "store=s", "name=x", "records.mlflow=false", "sweep.trials=2",
    "sweep.startup_trials=2", "training.epochs=1", "training.evaluations=1", "sweep.layer=0",
    "sweep.space={sae.d_sae: {choices: [16]}, sae.k: {choices: [1, 2]}}",
]  # fmt: skip


def sweep_refused(capsys, *overrides):
    return refused(capsys, sweep_command, *SWEEP, *overrides)


def extract_refused(capsys, *overrides):
    """The message; nothing may be left where the store would have been."""
    message = refused(capsys, extract_command, "store=new", *overrides)
    assert not Path("new").exists()
    return message


def extracted(*overrides):
    small = ["store=new", "source.layers=[0]", "source.validation=0.3"]
    assert run_command(extract_command.main, [*small, *overrides]) == DONE
    assert verify("new") == []
    return raysae.open_store("new")


def edit(store, change):
    path = store / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


def flip_byte(path):
    content = bytearray(path.read_bytes())
    content[200] ^= 1
    path.write_bytes(content)


def replace_shard(store, change, name=SHARD):
    """Write a shard anew, its row groups changed, with a manifest whose checksum is right."""
    path = store / name
    file = pq.ParquetFile(path)
    groups = [change(file.read_row_group(i)) for i in range(file.num_row_groups)]
    with pq.ParquetWriter(
        path, groups[0].schema, compression="none", use_dictionary=False, write_statistics=False
    ) as writer:
        for group in groups:
            writer.write_table(group)

    def update(manifest):
        for entry in manifest["sites"]:
            for shard in entry["shards"]:
                if shard["file"] == name:
                    shard.update(bytes=path.stat().st_size, sha256=sha256_of(path))

    edit(store, update)


# A store that was damaged: refused by every command that opens it


def first_shard_is(name):
    return lambda store: edit(
        store, lambda manifest: manifest["sites"][0]["shards"][0].update(file=name)
    )


def listed_twice(manifest):
    manifest["sites"].append(manifest["sites"][0])


def shard_listed_twice(manifest):
    shards = manifest["sites"][0]["shards"]
    shards.append(shards[0])


def cut(store):
    (store / SHARD).write_bytes((store / SHARD).read_bytes()[:-100])


def link_outside(store):
    shutil.move(store / SHARD, store.parent / "outside.parquet")
    (store / SHARD).symlink_to(store.parent / "outside.parquet")


def link_a_folder_outside(store):
    shutil.move(store / "layer=00", store.parent / "outside")
    (store / "layer=00").symlink_to(store.parent / "outside")


def editing(change):
    return lambda store: edit(store, change)


DAMAGES = {
    "truncated shard": (cut, "the shard is truncated or altered"),
    "lost shard": (lambda store: (store / SHARD).unlink(), "missing, though the manifest lists it"),
    "lost manifest": (lambda store: (store / "manifest.json").unlink(), "no manifest.json"),
    "newer format": (editing(lambda m: m.update(format_version=9)), "9; .*; upgrade raysae"),
    "older format": (editing(lambda m: m.update(format_version=1)), "extract or import .* again"),
    "site twice": (editing(listed_twice), "site listed twice: layer 0, position all"),
    "shard twice": (editing(shard_listed_twice), f"shard listed twice: {SHARD}"),
    "no JSON": (lambda s: (s / "manifest.json").write_text("{"), "not valid JSON"),
    "no text": (lambda s: (s / "manifest.json").write_bytes(b"\xff\xfe\x00"), "not valid JSON"),
    "deep JSON": (lambda s: (s / "manifest.json").write_text("[" * 200_000), "not valid JSON"),
    "a list": (lambda s: (s / "manifest.json").write_text("[]"), "format_version None"),
    "missing key": (editing(lambda m: m.pop("hookpoint")), "hookpoint: Field required"),
    "unknown key": (editing(lambda m: m.update(extra=1)), "extra: Extra inputs"),
    "position": (
        editing(lambda m: m["sites"][0].update(position="../x")), "manifest.json: sites.0.position"
    ),
    "layer": (editing(lambda m: m["sites"][0].update(layer=-1)), "manifest.json: sites.0.layer"),
    "parent folder": (first_shard_is("../outside.parquet"), "lies outside layer=00/position=all/"),
    "parent within": (
        first_shard_is("layer=00/position=all/../../../x.parquet"), "lies outside layer=00"
    ),
    "dots": (first_shard_is("layer=00/position=all/.."), "missing"),
    "absolute": (first_shard_is("/etc/passwd"), "lies outside layer=00/position=all/"),
    "escaped dots": (first_shard_is("layer=00/position=all/%2e%2e%2fx.parquet"), "missing"),
    "escaped folder": (first_shard_is("%2e%2e/x.parquet"), "lies outside"),
    "fragment": (first_shard_is(f"{SHARD}#x"), "missing"),
    "null byte": (first_shard_is(f"{SHARD}\0x"), "missing"),
    "link": (link_outside, "is a link to .*outside.parquet, outside the store; copy the store"),
    "linked folder": (link_a_folder_outside, "is a link to .*outside the store"),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_store_is_refused_by_the_sweep_and_by_show(capsys, store, name):
    import re

    damage, words = DAMAGES[name]
    damage(store)
    before = sorted(store.rglob("*"))
    for message in (sweep_refused(capsys), refused(capsys, store_command, "show", "s")):
        assert re.search(words, message)
        assert message.startswith("error: s") or str(store) in message
    assert not Path("runs").exists()
    assert sorted(store.rglob("*")) == before


def test_a_link_within_the_store_and_a_linked_store_are_harmless(store, place):
    os.replace(store / SHARD, store / "real.parquet")
    (store / SHARD).symlink_to("../../real.parquet")
    (place / "linked").symlink_to(store)
    assert len(raysae.open_store(place / "linked").train(Site(0, "all"))) > 250


def test_odd_characters_in_names_mean_nothing(store, place):
    """``#`` and ``%`` are no part of an address here: what is read is the file of that very name."""
    name = "layer=00/position=all/part#00 %2e.parquet"
    os.replace(store / SHARD, store / name)
    first_shard_is(name)(store)
    shutil.move(store, place / "s#1 %2e")
    assert len(raysae.open_store(place / "s#1 %2e").train(Site(0, "all"))) > 250


READING = pytest.mark.parametrize("reading", ["shared", "streaming"])


@READING
def test_a_flipped_byte_is_found_before_any_training(capsys, connected_ray, store, reading):
    flip_byte(store / SHARD)
    message = sweep_refused(capsys, f"resources.reading={reading}")
    assert f"{SHARD}: the file was altered after it was written" in message
    assert not list(Path("runs/x").glob("trials/*"))


@READING
def test_an_altered_shard_of_the_atlas_is_found_then_too(capsys, connected_ray, store, reading):
    flip_byte(store / OTHER_SITE)
    message = sweep_refused(capsys, f"resources.reading={reading}")
    assert f"{OTHER_SITE}: the file was altered after it was written" in message
    assert not list(Path("runs/x").glob("trials/*"))


def other_metadata(key, value):
    return lambda table: table.replace_schema_metadata({**table.schema.metadata, key: value})


def of_another_width(table):
    column = pa.array([b"\0" * 16] * len(table), pa.binary(16))
    return table.set_column(0, pa.field("activation", pa.binary(16), nullable=False), column)


@READING
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (other_metadata(D_IN_KEY, b"16"), "of d_in 16; the store is float32, d_in 8"),
        (other_metadata(DTYPE_KEY, b"float16"), "holds float16 rows"),
        (lambda table: table.replace_schema_metadata({}), "holds ? rows of d_in ?"),
        (lambda table: table.drop_columns("token_id"), "its columns are activation"),
        (of_another_width, "its columns are activation fixed_size_binary[16]"),
        (lambda table: table[:-5] if len(table) > 100 else table, "the manifest has"),
    ],
)
def test_a_shard_of_another_kind_is_named(capsys, connected_ray, store, reading, change, words):
    replace_shard(store, change)
    message = sweep_refused(capsys, f"resources.reading={reading}")
    assert SHARD in message and words in message
    assert run_command(store_command.main, ["verify", "s"]) == PARTLY


@READING
def test_rows_that_are_not_finite_are_found_before_any_training(
    capsys, connected_ray, store, reading
):
    """A store of ours holds none; one that somebody else wrote is told by sweep and by verify."""

    def spoil(table):
        rows = np.frombuffer(b"".join(table["activation"].to_pylist()), np.float32).reshape(-1, 8)
        rows = rows.copy()
        rows[: len(rows) // 2, 3] = np.nan
        column = pa.array([row.tobytes() for row in rows], pa.binary(32))
        return table.set_column(0, table.schema.field("activation"), column)

    replace_shard(store, spoil)
    message = sweep_refused(capsys, f"resources.reading={reading}")
    assert "rows hold NaN or infinite values (first: row " in message
    assert not list(Path("runs/x").glob("trials/*"))
    assert run_command(store_command.main, ["verify", "s"]) == PARTLY
    assert "rows with NaN or infinite values" in capsys.readouterr().out


def test_a_site_that_the_store_lacks(capsys, store):
    for override in ("sweep.layer=7", "sweep.position=3", "atlas.layers=[7]"):
        message = sweep_refused(capsys, override)
        assert "the store has no site" in message and "its layers are 0, 1" in message
    assert not Path("runs").exists()


@pytest.mark.parametrize("split", ["train", "validation"])
def test_a_site_without_rows_in_a_split(capsys, place, split):
    """Of the first rows, so many as leave a split empty."""
    shares = (0.0, 0.0) if split == "validation" else (0.999, 0.0)
    assert split != "train" or set(split_of(np.arange(20), *shares).tolist()) == {1}
    write_synthetic_store(
        place / "s", SuperpositionWorld(d_in=4, atoms=4), 20, validation=shares[0], test=shares[1]
    )
    message = sweep_refused(capsys)
    assert f"layer 0, position all has no {split} rows; nothing can be trained there" in message
    assert not Path("runs").exists()


# A source that cannot be used: refused by extract


def copied(tmp_path, *names):
    """A copy of some of the pocket model's files."""
    folder = tmp_path / "model"
    folder.mkdir()
    for file in POCKET_FOLDER.iterdir():
        if file.name.startswith(names):
            shutil.copy(file, folder)
    return folder


def test_hubs_that_cannot_be_reached(capsys, place, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # read at import
    message = extract_refused(capsys, "source.model=nobody/no-such-model-at-all")
    assert "cannot load it" in message and "the revision and the network" in message
    message = extract_refused(capsys, "source.dataset=nobody/no-such-data-set-at-all")
    assert "nor a folder or a hub data set that can be loaded" in message
    assert not list(place.iterdir())


def test_revisions_that_do_not_exist(capsys, place, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # read at import
    message = extract_refused(
        capsys, "source.model=openai-community/gpt2", "source.revision=no-such-revision"
    )
    assert "check the name, the revision and the network" in message
    message = extract_refused(capsys, "source.revision=main")
    assert "'pocket' is a folder, which has no revisions" in message
    (place / "d.jsonl").write_text('{"prompt": "x"}\n')
    message = extract_refused(capsys, "source.dataset=d.jsonl", "source.dataset_revision=main")
    assert "source.dataset_revision 'main'" in message and "has no revisions" in message


def test_a_tokenizer_without_a_pad_token_works(connected_ray, place):
    folder = copied(place, "")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config.pop("pad_token", None)
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "special_tokens_map.json").unlink(missing_ok=True)
    from transformers import AutoTokenizer

    assert AutoTokenizer.from_pretrained(folder).pad_token_id is None
    store = extracted(f"source.model={folder}", "source.sequences=40", "source.positions=[-1]")
    assert store.entry(Site(0, -1)).rows.total == 40


def test_a_model_folder_without_a_tokenizer(capsys, connected_ray, place):
    folder = copied(place, "config.json", "model")
    message = extract_refused(capsys, f"source.model={folder}", "source.sequences=40")
    assert "it has no tokenizer, or one that knows no words" in message


def test_texts_longer_than_the_context_are_cut_counted_and_told(connected_ray, place, capsys):
    words = ["one", "two", "a much longer line of words that does not fit"] * 20
    (place / "d.txt").write_text("\n".join(words))
    store = extracted(
        "source.dataset=d.txt", "source.text=text", "source.context_length=4",
        "source.positions=[0]",
    )  # fmt: skip
    counts = store.manifest.dataset
    assert counts["documents"] == 60 and counts["cut"] >= 20
    assert max(p.tokens / p.sequences for p in store.manifest.sequences) <= 4
    told = f"{counts['cut']} of 60 texts are longer than 4 tokens and were cut there"
    assert told in capsys.readouterr().out


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("source.layers=[0, 4]", "'pocket' has 4 layers, 0 to 3; found 4"),
        ("source.layers=[-1]", "'pocket' has 4 layers, 0 to 3; found -1"),
        ("source.context_length=129", "'pocket' reads at most 128 tokens"),
        ("source.positions=[verbs]", "'verbs', which is no pattern; known are all, answer"),
        ("source.positions=[../x]", "source.positions"),
        ("source.patterns={broken: '('}", "'(' is no regular expression"),
        ("source.patterns={'../x': 'a'}", "source.patterns"),
        ("source.text={nothing}", "has no column 'nothing'; it has"),
        ("source.text={prompt", "cannot be filled in"),
        ("source.text={prompt:d}", "cannot be filled in"),
        ("source.text={prompt.__class__}", "has no column 'prompt.__class__'"),
        ("source.dataset=none.jsonl", "no such file"),
        ("source.model=./none", "no such folder"),
    ],
)
def test_a_source_that_cannot_be_read_is_refused_before_anything_is_written(
    capsys, place, override, words
):
    assert words in extract_refused(capsys, override)
    assert not list(place.iterdir())


def test_a_broken_line_in_the_middle(capsys, place):
    lines = ['{"prompt": "1 + 1 ="}'] * 50
    lines[30] = '{"prompt": "1 +'
    (place / "d.jsonl").write_text("\n".join(lines))
    message = extract_refused(capsys, "source.dataset=d.jsonl")
    assert "d.jsonl" in message and "cannot be read" in message and "30" in message
    assert [path.name for path in place.iterdir()] == ["d.jsonl"]


def test_an_empty_field_is_no_text(connected_ray, place):
    rows = [{"prompt": f"{i} + 1 ="} if i % 2 else {"prompt": None} for i in range(80)]
    (place / "d.jsonl").write_text("\n".join(map(json.dumps, rows)))
    store = extracted("source.dataset=d.jsonl", "source.positions=[0]")
    assert store.manifest.dataset["documents"] == 40


def test_a_disk_that_is_too_small(capsys, connected_ray, place, monkeypatch):
    free = shutil._ntuple_diskusage(10**9, 10**9 - 1000, 1000)
    with monkeypatch.context() as patched:
        patched.setattr(shutil, "disk_usage", lambda path: free)
        message = refused(capsys, extract_command, "store=new", "source.sequences=60")
    assert "the disk has 0.00 GB free; set a limit (source.max_bytes)" in message
    assert not list(Path("new").rglob("part-*.parquet")) or not list(Path("new").glob("layer=*"))
    assert "no manifest.json" in refused(capsys, store_command, "show", "new")
    extracted("source.sequences=60")  # what there is makes room for another recipe


def test_a_store_folder_with_foreign_files(capsys, place):
    (place / "data").mkdir()
    (place / "data" / "thesis.txt").write_text("mine")
    message = refused(capsys, extract_command, "store=data")
    assert "holds files but no activation store; name another folder" in message
    assert (place / "data" / "thesis.txt").read_text() == "mine"
    message = refused(capsys, extract_command, "store=data/thesis.txt")
    assert "is a file; name a folder for the store" in message
    message = refused(capsys, extract_command, "store=data/thesis.txt/s")
    assert "thesis.txt" in message
    assert (place / "data" / "thesis.txt").read_text() == "mine"


def test_hostile_texts_and_names_of_texts_leave_the_store_folder_alone(connected_ray, place):
    texts = ["../../etc/passwd", "%2e%2e/#", "a\0b", "\u202egnol", "</script>"] * 12
    (place / "d.jsonl").write_text("\n".join(json.dumps({"prompt": text}) for text in texts))
    store = extracted("source.dataset=d.jsonl", "source.positions=[0]")
    found = {row["text"] for p in store.manifest.sequences
             for row in store.sequences(p).to_pylist()}  # fmt: skip
    assert found == set(texts)
    assert sorted(path.name for path in place.iterdir()) == ["d.jsonl", "new"]


def test_activations_that_are_not_finite_are_refused_by_the_command(
    capsys, connected_ray, place, tiny_models
):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(tiny_models["llama"])
    with torch.no_grad():
        model.model.embed_tokens.weight[:] = torch.inf
    model.save_pretrained(place / "bad")
    AutoTokenizer.from_pretrained(tiny_models["llama"]).save_pretrained(place / "bad")
    arguments = [
        "store=new", "source.model=bad", "source.layers=[1]", "source.context_length=64",
        "source.positions=[-1]", "source.sequences=60",
    ]  # fmt: skip
    capsys.readouterr()
    assert run_command(extract_command.main, arguments) == PARTLY  # the work had begun
    assert "rows hold NaN or infinite values (first: sequence" in capsys.readouterr().err
    assert "no manifest.json" in refused(capsys, store_command, "show", "new")
