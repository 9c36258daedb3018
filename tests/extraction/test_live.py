"""Live stores: exact plans, the same rows from any worker, keeping without a trace, bad rows."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import raysae
import raysae.extraction.keeping as keeping_module
import raysae.extraction.run as run_module
from raysae.activations.live import (
    check_live_memory,
    left_out_note,
    live_memory,
    read_head,
    replaced,
)
from raysae.activations.splits import SPLITS
from raysae.activations.verify import verify
from raysae.activations.writer import ShardFormat, SiteRows
from raysae.cluster.placement import Placement
from raysae.errors import UserError
from raysae.extraction.keeping import (
    KEEPING_FOLDER,
    bytes_to_keep,
    decide_keep,
    finish_kept,
    kept_shard,
)
from raysae.extraction.live import LiveExtractor
from raysae.extraction.plan import existing_store, plan_extraction
from raysae.extraction.run import extract
from raysae.sites import Site
from tests.extraction.local_pool import extracted_here, live_recipe, map_here

FIRST, POOL = Site(0, -1), Site(2, "all")


@pytest.fixture(scope="module")
def live(tmp_path_factory):
    """A live store and its plan."""
    with pytest.MonkeyPatch.context() as patch:
        return extracted_here(patch, live_recipe(tmp_path_factory.mktemp("live") / "store"))


@pytest.fixture
def copied(live, tmp_path):
    """A copy of the live store, to be changed, and its plan."""
    store, _ = live
    shutil.copytree(store.path, tmp_path / "store")
    plan = plan_extraction(live_recipe(tmp_path / "store"))
    return existing_store(plan), plan


def every_row(extractor, store):
    return [extractor.rows(number) for number in range(store.live.shards)]


def test_what_is_on_disk_is_the_held_out_rows_and_a_head(live):
    store, _ = live
    assert store.computes_rows and verify(store.path) == []
    assert 0 < store.live.head < store.live.shards
    for site in store.sites:
        rows, shards = store.entry(site).rows, store.entry(site).shards
        assert rows.train == store.live.total(site) > store.head_rows(site) > 0
        assert sum(shard.rows.train for shard in shards) == store.head_rows(site)
        assert len(store.validation(site)) == rows.validation
        assert len(store.test(site)) == rows.test
        assert store.head_rows(site) >= 0.02 * rows.train
    assert store.live.total(FIRST) == sum(map(store.live.sequences, range(store.live.shards)))


def test_held_out_rows_are_those_of_an_ordinary_store(live, tmp_path, monkeypatch):
    store, _ = live
    ordinary, _ = extracted_here(monkeypatch, live_recipe(tmp_path / "o", live=False))
    assert ordinary.live is None and not ordinary.computes_rows
    for site in store.sites:
        assert store.entry(site).rows == ordinary.entry(site).rows
        for split in SPLITS[1:]:
            found = [held_out(one, site, split) for one in (store, ordinary)]
            assert found[0][0] == found[1][0]
            assert torch.allclose(found[0][1], found[1][1], atol=2e-2, rtol=1e-2)


def held_out(store, site, split):
    """The tokens of a split's rows, sorted, and their activations in that order."""
    tables = [store.read(shard, split) for shard in store.shards(site, split)]
    keys = [
        key
        for table in tables
        for key in zip(table["sequence"].to_pylist(), table["token_index"].to_pylist(), strict=True)
    ]
    order = np.array(sorted(range(len(keys)), key=keys.__getitem__))
    rows_ND = torch.cat(list(store.blocks(site, split)))
    return sorted(keys), rows_ND[torch.from_numpy(order)].float()


def test_rows_are_as_planned_and_the_same_in_any_order_and_from_any_worker(live):
    store, plan = live
    one = LiveExtractor(plan, (FIRST, POOL))
    forward = every_row(one, store)
    other = LiveExtractor(plan, (POOL,))
    for number in reversed(range(store.live.shards)):
        assert torch.equal(other.rows(number)[POOL], forward[number][POOL])
        for site in (FIRST, POOL):
            assert len(forward[number][site]) == store.live.rows(site, number)
            assert forward[number][site].dtype == torch.float16
    for site in (FIRST, POOL):
        together = torch.cat([rows[site] for rows in forward])
        assert len(together) == store.entry(site).rows.train
        assert torch.equal(read_head(store, site), together[: store.head_rows(site)])


def test_every_batch_is_a_sign_of_life(live):
    store, plan = live
    calls = []
    LiveExtractor(plan, (FIRST,)).rows(store.live.head, lambda: calls.append(1))
    assert calls


def test_kept_rows_are_read_to_the_bit_and_leave_the_digest(copied):
    store, plan = copied
    expected = every_row(LiveExtractor(plan, (FIRST, POOL)), store)
    keeper = LiveExtractor(plan, (FIRST,), keep=True)
    missing = store.live.total(FIRST) - store.head_rows(FIRST)
    assert bytes_to_keep(store) > missing * store.row_bytes
    assert finish_kept(store) is store
    for number in (*range(3), *range(store.live.shards)):  # the first ones twice
        assert torch.equal(keeper.rows(number)[FIRST], expected[number][FIRST])
    assert bytes_to_keep(store) == 0
    kept = finish_kept(store)
    assert kept.digest == store.digest and not kept.computes_rows and verify(kept.path) == []
    assert kept.head_rows(FIRST) == store.head_rows(FIRST)
    assert existing_store(plan).digest == store.digest
    for site in (FIRST, POOL):
        rows_ND = torch.cat([rows[site] for rows in expected])
        assert torch.equal(kept.train(site), rows_ND)
        assert torch.equal(read_head(kept, site), read_head(store, site))
        streamed = kept.site(site, memory=0).train
        assert torch.equal(streamed.read(0, len(streamed)), rows_ND)
    assert not (kept.path / KEEPING_FOLDER).exists()
    assert finish_kept(kept) is kept


def test_keeping_goes_on_after_an_interruption(copied):
    store, plan = copied
    keeper, first = LiveExtractor(plan, (FIRST,), keep=True), store.live.head
    keeper.rows(first)
    file = kept_shard(store, first).entries[POOL].file
    report = store.path / KEEPING_FOLDER / f"shard-{first:05d}.json"
    text = report.read_text()
    report.unlink()  # killed after the files, before the report
    assert kept_shard(store, first) is None
    report.write_text(text)
    (store.path / file).unlink()
    assert kept_shard(store, first) is None
    every_row(LiveExtractor(plan, (FIRST,), keep=True), store)
    assert finish_kept(store).live.kept and verify(store.path) == []


def test_training_rows_that_are_not_there_are_not_read(live):
    store, _ = live
    for read in (store.train, store.site, lambda site: store.site(site, memory=0)):
        with pytest.raises(UserError, match=r"computed while training .* on disk, as its head"):
            read(FIRST)


def test_an_extraction_goes_on_where_it_stopped(live, tmp_path, monkeypatch):
    store, _ = live
    recipe = live_recipe(tmp_path / "s")
    monkeypatch.setattr(run_module, "_manifest", lambda *_: (_ for _ in ()).throw(UserError("cut")))
    with pytest.raises(UserError, match="cut"):
        extracted_here(monkeypatch, recipe)
    monkeypatch.undo()
    plan = plan_extraction(recipe)
    assert existing_store(plan) is None
    (plan.work / "shard-00002.json").unlink()
    done = []

    def counted(items, work, *, committed, **options):
        done.extend(item for item in items if committed(item) is None)
        return map_here(items, work, committed=committed)

    monkeypatch.setattr("raysae.extraction.shards.prepare_worker", lambda: "cpu")
    monkeypatch.setattr(run_module, "map_committed", counted)
    again = extract(plan, Placement(cpus=1, gpus=0, workers=1), recipe.resources)
    assert done == [2] and again.digest == store.digest
    for file in store.path.rglob("*.parquet"):
        assert (again.path / file.relative_to(store.path)).read_bytes() == file.read_bytes()


def test_a_store_is_of_its_kind(live, tmp_path):
    store, _ = live
    with pytest.raises(UserError, match="live: there True, asked for False"):
        existing_store(plan_extraction(live_recipe(store.path, live=False)))
    same = plan_extraction(live_recipe(store.path, "source.keep=yes"))
    assert existing_store(same).digest == store.digest and "keep" not in same.identity()
    ordinary = plan_extraction(live_recipe(tmp_path, live=False))
    assert not {"live", "keep"} & set(ordinary.identity())


def test_verify_finds_what_was_altered(copied):
    store, _ = copied
    file = next(s.file for s in store.entry(POOL).shards if not s.rows.train)
    (store.path / file).write_bytes((store.path / file).read_bytes()[:-1] + b"x")
    assert any(problem.file == file for problem in verify(store.path))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda live: live["shards"].pop(), "expected one shard for each file"),
        (lambda live: live.update(head=99), "a head of 99 of"),
        (
            lambda live: live["shards"][0]["rows"].update({"-1": 999}),
            "training rows, but live plans",
        ),
    ],
)
def test_a_plan_that_contradicts_the_store_is_refused(copied, change, expected):
    store, _ = copied
    file = store.path / "manifest.json"
    manifest = json.loads(file.read_text())
    change(manifest["live"])
    file.write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=expected):
        raysae.open_store(store.path)


def test_verify_counts_the_training_sequences(copied):
    store, _ = copied
    file = store.path / "manifest.json"
    manifest = json.loads(file.read_text())
    manifest["live"]["shards"][0]["sequences"] += 1
    file.write_text(json.dumps(manifest))
    assert any("training sequences" in problem.found for problem in verify(store.path))


def rows_of(*bad):
    rows_ND = torch.arange(12.0).reshape(6, 2) + 1
    rows_ND[list(bad)] = float("nan")
    return SiteRows(rows_ND, np.arange(6), np.arange(6, dtype=np.int32), np.zeros(6, np.int32))


@pytest.mark.parametrize(
    ("bad", "taken"),
    [((), [0, 1, 2, 3, 4, 5]), ((1, 2), [0, 3, 3, 3, 4, 5]), ((0, 4, 5), [1, 1, 2, 3, 1, 1])],
)
def test_the_next_row_that_stays_takes_the_place(bad, taken):
    form = ShardFormat("float32", {"validation": 0.1, "test": 0.1}, non_finite="drop")
    found, gone = replaced(rows_of(*bad), 4, form, FIRST)
    assert found.sequence.tolist() == taken and gone.tolist() == list(bad)
    assert found.activation_ND.isfinite().all()


def test_rows_whose_place_was_taken_are_told():
    assert left_out_note({FIRST: 0}) is None
    assert "3 at layer 2, position all" in left_out_note({FIRST: 0, POOL: 3})


def test_rows_that_cannot_be_used_are_told_with_their_place():
    split = {"validation": 0.1, "test": 0.1}
    with pytest.raises(UserError, match=r"shard 4: layer 0, .* 2 of 6 rows .*sequence 1, token 1"):
        replaced(rows_of(1, 2), 4, ShardFormat("float32", split), FIRST)
    drop = ShardFormat("float32", split, non_finite="drop")
    with pytest.raises(UserError, match=r"all 6 training rows of shard 4 .*sequence 0, token 0"):
        replaced(rows_of(*range(6)), 4, drop, FIRST)


@pytest.fixture(scope="module")
def broken_model(tmp_path_factory):
    """The pocket GPT-2 with NaN as the embedding of one token."""
    folder = tmp_path_factory.mktemp("broken") / "model"
    pocket = Path(raysae.__file__).parent / "pocket" / "model"
    model = AutoModelForCausalLM.from_pretrained(pocket)
    tokenizer = AutoTokenizer.from_pretrained(pocket)
    with torch.no_grad():
        token = tokenizer(" 7", add_special_tokens=False)["input_ids"][-1]
        model.transformer.wte.weight[token] = float("nan")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_a_model_that_gives_nan_is_refused_or_its_rows_are_replaced(
    broken_model, tmp_path, monkeypatch
):
    options = f"source.model={broken_model}", "source.positions=[all]", "source.layers=[0]"
    with pytest.raises(UserError, match=r"rows hold NaN .*first: sequence \d+, token \d+"):
        extracted_here(monkeypatch, live_recipe(tmp_path / "refused", *options))
    recipe = live_recipe(tmp_path / "dropped", *options, "source.non_finite=drop")
    store, plan = extracted_here(monkeypatch, recipe)
    site = Site(0, "all")
    extractor = LiveExtractor(plan, (site,), keep=True)
    left_out = 0
    for number in range(store.live.shards):
        rows_ND = extractor.rows(number)[site]
        assert len(rows_ND) == store.live.rows(site, number) and rows_ND.isfinite().all()
        left_out += extractor.left_out.get(site, 0)
    assert store.entry(site).dropped > 0 and left_out > 0
    kept = finish_kept(store)
    assert kept.entry(site).dropped == store.entry(site).dropped + left_out
    assert verify(kept.path) == []


def test_another_model_than_that_of_the_store_is_refused(copied):
    store, plan = copied
    file = store.path / "manifest.json"
    manifest = json.loads(file.read_text())
    manifest["model"]["weights_sha256"] = "0" * 64
    file.write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="its weights are not those that made the held-out rows"):
        LiveExtractor(plan, (FIRST,))


def test_a_damaged_file_of_tokens_is_refused(copied):
    store, plan = copied
    file = store.path / store.manifest.sequences[1].file
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(UserError, match="altered after it was written"):
        LiveExtractor(plan, (FIRST,)).rows(1)


def test_what_is_kept_follows_the_disk(live, monkeypatch):
    store, _ = live
    needed = bytes_to_keep(store)

    def free(share):
        usage = shutil.disk_usage(store.path)._replace(free=int(needed * share))
        monkeypatch.setattr(keeping_module.shutil, "disk_usage", lambda _: usage)

    free(1.2)
    assert decide_keep(store, "auto").keep and decide_keep(store, "yes").keep
    assert not decide_keep(store, "no").keep
    free(1.05)
    told = decide_keep(store, "auto")
    assert not told.keep and "MB to write" in str(told) and decide_keep(store, "yes").keep
    free(0.9)
    with pytest.raises(UserError, match=r"source.keep=yes: the disk .* does not hold"):
        decide_keep(store, "yes")


def test_windows_larger_than_memory_are_told():
    needed = live_memory(1000, 5000, 8, 3)
    assert needed == 2 * 1000 * 8 * 3 and live_memory(1000, 500, 8, 3) == needed // 2
    check_live_memory(needed, needed, 1000, 3)
    check_live_memory(needed, None, 1000, 3)
    with pytest.raises(UserError, match=r"shuffle_rows of at most 500"):
        check_live_memory(needed, needed / 2, 1000, 3)


@pytest.mark.long
def test_the_pool_writes_the_same_live_store(connected_ray, live, tmp_path):
    store, _ = live
    recipe = live_recipe(tmp_path / "s")
    other = extract(plan_extraction(recipe), Placement(cpus=1, gpus=0, workers=3), recipe.resources)
    assert other.digest == store.digest
    assert (other.path / "manifest.json").read_bytes() == (
        store.path / "manifest.json"
    ).read_bytes()
