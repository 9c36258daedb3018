"""Extraction through Ray: the same store from any number of workers, limits, bad input."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import raysae
import raysae.extraction.sequences as sequences_module
from raysae.activations import Site
from raysae.activations.splits import SPLITS, split_of_key
from raysae.activations.verify import verify
from raysae.cluster.placement import Placement
from raysae.config import load_recipe
from raysae.errors import UserError
from raysae.extraction.extract_command import main
from raysae.extraction.plan import WORK_FOLDER, existing_store, plan_extraction, text_spec
from raysae.extraction.run import extract
from raysae.extraction.sequences import first_sequences, write_tokens
from raysae.extraction.shards import load_capturer
from raysae.pocket.problems import make_problem
from raysae.transformer.repeats import same_text
from raysae.transformer.texts import read_documents


def recipe_of(tmp_path, name, *overrides):
    return load_recipe(
        None,
        [
            f"name={name}", f"store={tmp_path / name}", "source.sequences=60",
            "source.sequences_per_shard=16", "source.layers=[0, 3]", "source.positions=[-1, 0]",
            "source.validation=0.3", *overrides,
        ],
    )  # fmt: skip


def extracted(recipe, workers=2):
    placement = Placement(cpus=1, gpus=0, workers=workers)
    return extract(plan_extraction(recipe), placement, recipe.resources)


def content(store):
    return {
        file.relative_to(store.path).as_posix(): file.read_bytes()
        for file in Path(store.path).rglob("*")
        if file.is_file()
    }


def test_blocks_above_the_layers_do_not_run(tmp_path):
    plan, ran = plan_extraction(recipe_of(tmp_path, "low", "source.layers=[0, 1]")), set()
    capturer, _ = load_capturer(plan, "cpu")
    for number, block in enumerate(capturer.tower.blocks):
        block.register_forward_hook(lambda *_, number=number: ran.add(number))
    assert set(capturer.rows(first_sequences(plan, 3), [-1])) == {
        Site(0, -1),
        Site(1, -1),
    } and ran == {0, 1}


@pytest.mark.long
def test_the_number_of_workers_never_shows(connected_ray, tmp_path):
    ratio = "source.max_norm_ratio=1.05"
    one = content(extracted(recipe_of(tmp_path, "one", ratio), 1))
    three = content(extracted(recipe_of(tmp_path, "three", ratio), 3))
    assert len(one) == 4 * 4 + 4 + 1
    assert one == three


def test_a_sequence_is_in_the_same_split_whatever_the_shards(connected_ray, tmp_path):
    found = []
    for name, size in (("large", 16), ("small", 7)):
        store = extracted(recipe_of(tmp_path, name, f"source.sequences_per_shard={size}"))
        home = {}
        for site in store.sites:
            for shard in store.entry(site).shards:
                for split in SPLITS:
                    for number in store.read(shard, split)["sequence"].to_pylist():
                        home.setdefault(number, set()).add(split)
        assert all(len(splits) == 1 for splits in home.values())
        found.append(home)
    assert found[0] == found[1] and len(found[0]) == 60


def test_the_manifest_says_where_everything_came_from(connected_ray, tmp_path):
    store = extracted(recipe_of(tmp_path, "s"))
    manifest = json.loads((store.path / "manifest.json").read_text())
    assert manifest["provenance"] == "model" and manifest["context_length"] == 128
    assert manifest["model"]["architecture"] == "GPT2LMHeadModel"
    assert len(manifest["model"]["weights_sha256"]) == 64
    assert manifest["dataset"]["sequences"] == 60 and manifest["dataset"]["too_short"] == 0
    assert [str(site) for site in store.sites] == [
        "layer 0, position -1", "layer 0, position 0", "layer 3, position -1", "layer 3, position 0"
    ]  # fmt: skip
    assert verify(store.path) == []


@pytest.mark.long
def test_fingerprints_are_of_what_was_used_and_not_of_how(connected_ray, tmp_path):
    stores = [
        extracted(recipe_of(tmp_path, name, "source.positions=[0]", *overrides), 1).manifest
        for name, overrides in (
            ("plain", []),
            ("packed", ["source.packing=true", "source.context_length=64"]),
            ("fewer", ["source.max_tokens=300"]),
        )
    ]
    plain, packed, fewer = stores
    assert len({store.model["tokenizer_sha256"] for store in stores}) == 1
    assert plain.dataset["texts_sha256"] == packed.dataset["texts_sha256"]
    assert fewer.dataset["documents"] < plain.dataset["documents"]
    assert fewer.dataset["texts_sha256"] != plain.dataset["texts_sha256"]


def test_rows_of_all_layers_stay_aligned(connected_ray, tmp_path):
    store = extracted(recipe_of(tmp_path, "s", "source.positions=[all]"))
    columns = []
    for layer in (0, 3):
        tables = [store.read(s, "train") for s in store.entry(Site(layer, "all")).shards]
        columns.append([t["sequence"].to_pylist() + t["token_index"].to_pylist() for t in tables])
    assert columns[0] == columns[1]
    sequence = np.array(columns[0][0][: len(columns[0][0]) // 2])
    assert (np.diff(sequence) == 0).mean() < 0.5  # shuffled: neighbours are of other sequences


def test_texts_with_patterns_and_packing_through_the_command(connected_ray, tmp_path, capsys):
    overrides = [
        "source.packing=true", "source.positions=[numbers, operators]", "source.sequences=60",
        "source.layers=[1]", "source.validation=0.3", f"store={tmp_path / 's'}",
    ]  # fmt: skip
    assert main(overrides) == 0
    out = capsys.readouterr().out
    assert "tokens/s" in out and "GB" in out and "2 sites" in out
    store = raysae.open_store(tmp_path / "s")
    assert sorted(store.manifest.patterns) == ["numbers", "operators"]
    texts = {row["sequence"]: row for p in store.manifest.sequences
             for row in store.sequences(p).to_pylist()}  # fmt: skip
    for position, allowed in (("numbers", "0123456789.,"), ("operators", "-+*/=×÷<>^%")):
        for shard in store.entry(Site(1, position)).shards:
            for split in SPLITS:
                table = store.read(shard, split)
                for number, place in zip(
                    table["sequence"].to_pylist(), table["token_index"].to_pylist(), strict=True
                ):
                    row = texts[number]
                    token = row["text"][row["token_start"][place] : row["token_end"][place]]
                    assert set(token) & set(allowed)
    assert verify(tmp_path / "s") == []
    assert main(overrides) == 0
    assert "is there already" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("limit", "of"),
    [
        ("source.max_tokens=900", lambda store: sum(p.tokens for p in store.manifest.sequences)),
        pytest.param(
            "source.max_rows=900",
            lambda store: max(e.rows.total for e in store.manifest.sites),
            marks=pytest.mark.long,
        ),
        pytest.param(
            "source.max_bytes=500 kB",
            lambda store: sum(s.bytes for e in store.manifest.sites for s in e.shards),
            marks=pytest.mark.long,
        ),
    ],
)
def test_limits_are_kept_and_used(connected_ray, tmp_path, limit, of):
    store = extracted(recipe_of(tmp_path, "s", "source.positions=[all]", limit))
    most = 500_000 if "bytes" in limit else 900
    sequence = 128 if "bytes" not in limit else 128 * 2 * 272
    assert most - sequence < of(store) <= most * 1.05  # Parquet's own footers are not counted


def test_a_limit_that_holds_nothing_is_refused(connected_ray, tmp_path):
    with pytest.raises(UserError, match=r"long enough or matches within \{'max_tokens': 3\}"):
        extracted(recipe_of(tmp_path, "s", "source.max_tokens=3"))
    assert not (tmp_path / "s").exists()


@pytest.fixture
def huge_model(tmp_path, tiny_models):
    """A model whose activations are beyond float16."""
    model = AutoModelForCausalLM.from_pretrained(tiny_models["gpt2"])
    with torch.no_grad():
        model.transformer.wte.weight.mul_(1e8)
    model.save_pretrained(tmp_path / "huge")
    AutoTokenizer.from_pretrained(tiny_models["gpt2"]).save_pretrained(tmp_path / "huge")
    return [f"source.model={tmp_path / 'huge'}", "source.layers=all", "source.context_length=64"]


def test_values_too_large_for_float16_are_refused(connected_ray, tmp_path, huge_model):
    with pytest.raises(UserError, match="source.dtype=bfloat16"):
        extracted(recipe_of(tmp_path, "store", *huge_model), 1)
    with pytest.raises(UserError, match="not a finished activation store"):
        raysae.open_store(tmp_path / "store")
    recipe = recipe_of(tmp_path, "store", *huge_model, "source.dtype=float32")
    assert existing_store(plan_extraction(recipe)) is None  # what was refused makes room
    wide = extracted(recipe, 1)
    assert wide.manifest.sites[0].mean_square_norm > 1e9
    assert verify(wide.path) == []


def test_rows_that_are_not_finite_are_refused_or_left_out(connected_ray, tmp_path, tiny_models):
    model = AutoModelForCausalLM.from_pretrained(tiny_models["llama"])
    tokenizer = AutoTokenizer.from_pretrained(tiny_models["llama"])
    name = make_problem(1, 0).prompt.split()[0]
    with torch.no_grad():
        model.model.embed_tokens.weight[tokenizer(name)["input_ids"][0]] = torch.nan
    model.save_pretrained(tmp_path / "bad")
    tokenizer.save_pretrained(tmp_path / "bad")
    bad = [
        f"source.model={tmp_path / 'bad'}", "source.layers=[1]", "source.context_length=64",
        "source.positions=[-1]", "source.sequences=400",
    ]  # fmt: skip
    with pytest.raises(UserError, match=r"rows hold NaN or infinite values \(first: sequence \d+"):
        extracted(recipe_of(tmp_path, "s", *bad), 1)
    store = extracted(recipe_of(tmp_path, "s", *bad, "source.non_finite=drop"), 1)
    entry = store.entry(Site(1, -1))
    assert entry.dropped > 0 and entry.dropped + entry.rows.total == 400
    assert verify(store.path) == []


def test_rows_far_over_the_median_norm_are_left_out(connected_ray, tmp_path):
    plain = ["source.dtype=float32", "source.positions=[all]"]
    ratio = [*plain, "source.max_norm_ratio=1.05"]
    every = extracted(recipe_of(tmp_path, "every", *plain), 1)
    some = extracted(recipe_of(tmp_path, "some", *ratio), 1)
    for before, after in zip(every.manifest.sites, some.manifest.sites, strict=True):
        for shard, left in zip(before.shards, after.shards, strict=True):
            norm, kept = norms_in(every, shard), norms_in(some, left)
            limit = 1.05 * norm.median()
            assert torch.equal(kept.sort()[0], norm[norm <= limit].sort()[0]) and len(kept) < len(
                norm
            )
        assert after.too_large == before.rows.total - after.rows.total > 0 == after.dropped
    assert verify(some.path) == []
    assert "too_large" not in (every.path / "manifest.json").read_text()


def norms_in(store, shard):
    """The norms of a shard's rows, of all splits."""
    splits = [split for split in SPLITS if getattr(shard.rows, split)]
    rows = torch.cat([store.rows(store.segments(shard, split)) for split in splits])
    return rows.double().norm(dim=1)


def test_another_limit_of_the_norm_is_another_store(tmp_path):
    plans = {
        value: plan_extraction(recipe_of(tmp_path, "s", f"source.max_norm_ratio={value}"))
        for value in ("null", "5", "7.5")
    }
    for one, ours in plans.items():
        for other, theirs in plans.items():
            differs = {"max_norm_ratio"} if one != other else set()
            assert set(ours.differences(theirs.identity())) == differs
    before = {**plans["null"].identity()}
    assert "max_norm_ratio" not in before, "stores without it are written as ever"


@pytest.mark.parametrize("value", ["1", "0", "-2", ".nan", ".inf", "much"])
def test_a_limit_of_the_norm_that_makes_no_sense_is_refused(tmp_path, value):
    with pytest.raises(UserError, match=r"source\.max_norm_ratio"):
        recipe_of(tmp_path, "s", f"source.max_norm_ratio={value}")


def test_texts_too_short_for_the_positions_are_counted_and_left_out(connected_ray, tmp_path):
    store = extracted(recipe_of(tmp_path, "s", "source.positions=[-50]"), 1)
    counts = store.manifest.dataset
    assert counts["sequences"] + counts["too_short"] == 60 and counts["too_short"] > 0
    assert store.manifest.sites[0].rows.total == counts["sequences"]
    with pytest.raises(UserError, match="long enough"):
        extracted(recipe_of(tmp_path, "none", "source.positions=[-120]"), 1)


def test_a_split_without_rows_is_refused_before_any_forward_pass(connected_ray, tmp_path):
    recipe = recipe_of(tmp_path, "s", "source.sequences=null")
    texts = (same_text(d.text) for d in read_documents(text_spec(recipe.source)))
    first = next(i for i, text in enumerate(texts) if split_of_key(text, 0.01, 0.0))
    few = f"source.sequences={first}"
    with pytest.raises(UserError, match="position -1 has no validation rows"):
        extracted(recipe_of(tmp_path, "s", "source.validation=0.01", "source.test=0", few))
    assert not (tmp_path / "s").exists()


def test_a_pattern_that_matches_nothing_is_named(connected_ray, tmp_path):
    silent = ["source.positions=[-1, greek]", "source.patterns={greek: '[α-ω]'}"]
    with pytest.raises(UserError, match=r"greek \('\[α-ω\]'\) matches no token of the 60 texts"):
        extracted(recipe_of(tmp_path, "s", *silent))


def test_a_disk_that_is_too_small_is_told_before_any_forward_pass(
    connected_ray, tmp_path, monkeypatch
):
    import shutil

    free = shutil._ntuple_diskusage(10**9, 10**9 - 1000, 1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: free)
    with pytest.raises(UserError, match="GB are still to be written, the disk has 0.00 GB free"):
        extracted(recipe_of(tmp_path, "s"))


def test_an_unfinished_extraction_of_another_recipe_is_not_touched(connected_ray, tmp_path):
    plan = plan_extraction(recipe_of(tmp_path, "s"))
    plan.work.mkdir(parents=True)
    (plan.work / "identity.json").write_text(json.dumps({**plan.identity(), "seed": 7}))
    (plan.work / "shard-00000.json").write_text("{}")
    with pytest.raises(
        UserError, match="unfinished extraction of another source.*\n  seed: there 7"
    ):
        existing_store(plan)
    assert (plan.work / "shard-00000.json").read_text() == "{}"


def test_two_extractions_into_one_folder(connected_ray, tmp_path):
    from raysae.storage.files import locked

    plan = plan_extraction(recipe_of(tmp_path, "s"))
    plan.work.mkdir(parents=True)
    with (
        locked(plan.work / "lock", "this", "wait"),
        pytest.raises(UserError, match=f"{WORK_FOLDER}: process .* is working on this extraction"),
    ):
        extracted(recipe_of(tmp_path, "s"))


def test_a_recipe_without_a_source(tmp_path):
    with pytest.raises(UserError, match="source is null"):
        main(["source=null", f"store={tmp_path}"])


def test_rows_of_a_text_that_repeats_are_in_one_split_and_counted(connected_ray, tmp_path, capsys):
    """Twenty texts, each five times, in an order that mixes them."""
    texts = [make_problem(1, i).prompt for i in range(20)]
    data = tmp_path / "d.jsonl"
    data.write_text("\n".join(json.dumps({"prompt": texts[i * 7 % 20]}) for i in range(100)))
    overrides = [f"source.dataset={data}", "source.test=0.3", "source.positions=[-1]"]
    recipe = recipe_of(tmp_path, "s", *overrides, "source.sequences=100")
    store = extracted(recipe)
    site = Site(3, -1)
    rows = [getattr(store, name)(site).float() for name in SPLITS]
    assert sum(map(len, rows)) == 100 and all(map(len, rows))
    for one, other in itertools.combinations(rows, 2):
        assert torch.cdist(one, other).min() > 0.1  # far beyond rounding
    assert store.manifest.dataset["repeated"] == 80
    assert store.manifest.dataset["split_by"] == "text"
    assert store.manifest.dataset["repeated_rows"] == {"-1": 0.0}
    assert "80 of 100 texts repeat an earlier one; they are in its split" in capsys.readouterr().out
    assert verify(store.path) == []


def test_held_out_rows_that_stand_after_the_same_tokens_are_told(connected_ray, tmp_path, capsys):
    data = tmp_path / "d.jsonl"
    data.write_text("\n".join(json.dumps({"prompt": f"There are {i} cups."}) for i in range(40)))
    overrides = [f"source.dataset={data}", "source.positions=[0,-1]", "source.test=0.3"]
    store = extracted(recipe_of(tmp_path, "s", *overrides))
    shares = store.manifest.dataset["repeated_rows"]
    assert shares == {"-1": 0.0, "0": 1.0}
    out = " ".join(capsys.readouterr().out.split())
    assert "after the same tokens as a training row: at 0 (100%)" in out
    assert "39 of 40 texts nearly repeat an earlier one" in out


@pytest.mark.parametrize(("sequences", "shards"), [(1500, (15, 32)), (40, (1, 2))])
def test_a_small_data_set_makes_shards_for_many_workers(tmp_path, sequences, shards):
    """1,500 texts were one shard, so one of two cores worked."""
    recipe = recipe_of(
        tmp_path, "s", f"source.sequences={sequences}", "source.sequences_per_shard=2000"
    )
    tokens = write_tokens(plan_extraction(recipe), lambda sequences, tokens: None)
    assert shards[0] <= len(tokens.parts) <= shards[1]
    sizes = [part.tokens for part in tokens.parts]
    assert max(sizes) < 1.5 * (sum(sizes) / len(sizes) + 128)


def test_a_large_data_set_makes_more_shards_but_few(tmp_path, monkeypatch):
    monkeypatch.setattr(sequences_module, "SHUFFLED_TOKENS", 10_000)
    monkeypatch.setattr(sequences_module, "SHARD_TOKENS", 100)
    recipe = recipe_of(tmp_path, "s", "source.sequences=1500")
    tokens = write_tokens(plan_extraction(recipe), lambda sequences, tokens: None)
    windows = tokens.tokens / 10_000
    assert 32 < len(tokens.parts) < 16 * 1500 / 16
    assert len(tokens.parts) < 32 * (2 + np.log(windows)) * 1.3
