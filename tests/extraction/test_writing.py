"""Shards that a thread writes while the model reads the next ones: the same bytes, errors in order."""

import threading
import time

import pytest
import torch

import raysae.extraction.shards as shards_module
from raysae.cluster.later import Later, finished
from raysae.config import load_recipe
from raysae.errors import UserError
from raysae.extraction.writing import WritingThread, writes_beside
from tests.extraction.local_pool import extracted_here, live_recipe


def content(store):
    files = (path for path in store.rglob("*") if path.is_file())
    return {path.relative_to(store).as_posix(): path.read_bytes() for path in files}


@pytest.mark.parametrize("live", [True, False])
def test_a_thread_writes_the_same_bytes(tmp_path, monkeypatch, live):
    stores = {}
    for beside in (False, True):
        monkeypatch.setattr(shards_module, "writes_beside", lambda device, beside=beside: beside)
        recipe = live_recipe(tmp_path / str(beside), live=live)
        store, _ = extracted_here(monkeypatch, recipe)
        stores[beside] = content(store.path)
    assert stores[True] == stores[False] and len(stores[True]) > 20


@pytest.fixture
def extractor(tmp_path, monkeypatch):
    """A worker, with a thread, of a store whose sequences are written."""
    monkeypatch.setattr(shards_module, "prepare_worker", lambda: "cpu")
    monkeypatch.setattr(shards_module, "writes_beside", lambda device: True)
    recipe = load_recipe(
        None,
        [f"store={tmp_path / 'store'}", "source.sequences=60", "source.sequences_per_shard=20",
         "source.layers=[0, 2]", "source.positions=[all]", "source.validation=0.2"],
    )  # fmt: skip
    from raysae.extraction.plan import plan_extraction
    from raysae.extraction.sequences import write_tokens

    plan = plan_extraction(recipe)
    plan.work.mkdir(parents=True)
    write_tokens(plan, lambda *_: None)
    return shards_module.ShardExtractor(plan)


def test_the_model_reads_on_while_a_shard_is_written_and_at_most_one_is(extractor, monkeypatch):
    log, gate, write = [], threading.Event(), shards_module.write_shard

    def gated(store, site, number, *args):
        log.append(f"write {number}")
        assert gate.wait(60)
        return write(store, site, number, *args)

    rows = extractor.capturer.rows

    def read(*args):
        log.append("read")
        return rows(*args)

    monkeypatch.setattr(shards_module, "write_shard", gated)
    monkeypatch.setattr(extractor.capturer, "rows", read)
    first = extractor.do(0, lambda: None)
    assert isinstance(first, Later)
    second = []
    doing = threading.Thread(target=lambda: second.append(extractor.do(1, lambda: None)))
    doing.start()
    until = time.monotonic() + 60
    while log.count("read") < 2:
        assert time.monotonic() < until
        time.sleep(0.01)
    time.sleep(0.2)
    assert log == ["read", "write 0", "read"] and not second, (
        "the second waits to hand its rows over"
    )
    gate.set()
    doing.join()
    finished(second[0])
    assert log == ["read", "write 0", "read", "write 0", "write 1", "write 1"]
    for number in (0, 1):
        assert shards_module.committed_shard(extractor.plan, number) is not None


def test_an_error_of_the_thread_is_that_of_its_shard_and_the_next_is_made(extractor, monkeypatch):
    write = shards_module.write_shard

    def failing(store, site, number, *args):
        if number == 0 and site.layer == 2:
            raise UserError("no room left")
        return write(store, site, number, *args)

    monkeypatch.setattr(shards_module, "write_shard", failing)
    first, second = extractor.do(0, lambda: None), extractor.do(1, lambda: None)
    with pytest.raises(UserError, match="no room left"):
        finished(first)
    finished(second)
    plan = extractor.plan
    assert shards_module.committed_shard(plan, 0) is None, "its report comes after all its files"
    assert shards_module.committed_shard(plan, 1) is not None


def test_the_thread_computes_with_as_many_threads():
    seen = []
    WritingThread().begin(lambda: seen.append(torch.get_num_threads()))()
    assert seen == [torch.get_num_threads()]
    assert writes_beside("cuda") and not writes_beside("cpu")
