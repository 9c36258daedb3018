"""Shared and streaming: the same rows in the same order, sought and resumed, at constant memory."""

import json
import os
import subprocess
import sys
from dataclasses import asdict

import pyarrow.parquet as pq
import pytest
import ray
import torch

import raysae
from raysae.activations import Site
from raysae.activations.streaming import StreamedRows, rows_within
from raysae.activations.synthetic import SuperpositionWorld, write_synthetic_store
from raysae.activations.writer import write_store
from raysae.cluster.reading import check_windows, choose_reading, open_site
from raysae.cluster.scan.opening import serving
from raysae.cluster.scan.rows import ScannedSite
from raysae.config import ResourcesConfig
from raysae.errors import UserError
from raysae.storage.files import sha256_of
from raysae.training.rows import Rows, Stream, StreamPosition

SITE = Site(0, "all")


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """1,000 rows in shards of 130, each row group small enough that windows cut through them."""
    folder = tmp_path_factory.mktemp("reading") / "s"
    write_synthetic_store(folder, SuperpositionWorld(d_in=8, atoms=16), 1000, shard_rows=130)
    return raysae.open_store(folder)


def in_memory(store):
    return Rows(list(store.blocks(SITE, "train")))


def batches(source, **options):
    stream = Stream(source, seed=3, epochs=2, batch_size=48, **options)
    return [batch.clone() for batch in stream]


@pytest.fixture(scope="module")
def service(connected_ray):
    """A scan service with memory for a few hundred rows."""
    with serving(memory=9_000, workers=1, each=4, patience=None) as service:
        yield service


@pytest.fixture(params=["shared", "scan", "streaming"])
def source(request, store, service):
    """The contract holds for every source of rows."""
    if request.param == "scan":
        return ScannedSite(str(store.opened_by), SITE, service, piece_bytes=1_000).rows("train")
    reading = choose_reading(store, [SITE], ResourcesConfig(reading=request.param))
    return open_site(reading, store, SITE).rows("train")


@pytest.mark.parametrize("window", [100, 333, 262_144])
def test_every_source_gives_the_same_order(source, store, window):
    wanted = batches(in_memory(store), shuffle_rows=window)
    found = batches(source, shuffle_rows=window)
    assert [len(batch) for batch in found] == [len(batch) for batch in wanted]
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


@pytest.mark.parametrize("window", [100, 262_144])
def test_an_epoch_takes_every_row_once_and_another_epoch_another_order(source, store, window):
    rows = store.train(SITE)
    first, second = torch.cat(batches(source, shuffle_rows=window)).split(len(rows))
    for epoch in (first, second):
        assert sorted(map(tuple, epoch.tolist())) == sorted(map(tuple, rows.tolist()))
    assert not torch.equal(first, second) and not torch.equal(first, rows)


@pytest.mark.parametrize("taken", [0, 1, 7, 16, 17, 20, 33])
def test_a_saved_position_is_sought(source, taken):
    """``taken`` batches in, the position goes through JSON and another stream goes on there."""
    options = {"seed": 3, "epochs": 2, "batch_size": 48, "shuffle_rows": 100}
    whole = [batch.clone() for batch in Stream(source, **options)]
    stream = Stream(source, **options)
    for _, _batch in zip(range(taken), stream, strict=False):
        pass
    saved = json.loads(json.dumps(asdict(stream.position)))
    rest = list(Stream(source, **options, position=StreamPosition(**saved)))
    assert len(rest) == len(whole) - taken
    assert all(torch.equal(a, b) for a, b in zip(rest, whole[taken:], strict=True))


def test_rows_in_their_own_order(source, store):
    rows = store.train(SITE)
    assert len(source) == len(rows)
    assert torch.equal(torch.cat(list(source.batches(37))), rows)
    assert torch.equal(source.read(125, 140), rows[125:140])
    assert len(source.sample(50, seed=1)) == 50
    assert len(source.sample(5000, seed=1)) == len(rows)


@pytest.mark.parametrize("readers", [1, 2, 5])
def test_the_number_of_readers_never_shows(store, readers):
    found = batches(StreamedRows(store, SITE, "train", readers), shuffle_rows=250)
    wanted = batches(StreamedRows(store, SITE, "train", 1), shuffle_rows=250)
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


def test_fit_trains_on_a_stream_to_the_same_bits(store):
    options = {"epochs": 2, "batch_size": 64, "shuffle_rows": 200, "lr": 1e-3}
    fits = [
        raysae.fit({"d_sae": 16, "k": 2}, train, options, validation=validation)
        for train, validation in (
            (store.train(SITE), store.validation(SITE)),
            (StreamedRows(store, SITE, "train"), StreamedRows(store, SITE, "validation")),
        )
    ]
    assert fits[0].metrics == fits[1].metrics
    assert torch.equal(fits[0].sae.W_dec, fits[1].sae.W_dec)


@pytest.mark.parametrize("options", [{"compression": "zstd"}, {"data_page_version": "2.0"}])
def test_shards_of_another_writer_are_decoded(store, tmp_path, options):
    """What must be decoded is: nothing leans on the way in which our own writer lays out pages."""
    import shutil

    shutil.copytree(store.path, tmp_path / "s")
    manifest = json.loads((tmp_path / "s" / "manifest.json").read_text())
    for shard in manifest["sites"][0]["shards"]:
        path = tmp_path / "s" / shard["file"]
        groups = [pq.ParquetFile(path).read_row_group(i) for i in range(3)]
        with pq.ParquetWriter(path, groups[0].schema, **options) as writer:
            for group in groups:
                writer.write_table(group)
        shard.update(bytes=path.stat().st_size, sha256=sha256_of(path))
    (tmp_path / "s" / "manifest.json").write_text(json.dumps(manifest))
    other = raysae.open_store(tmp_path / "s")
    assert other.segments(other.manifest.sites[0].shards[0], "train")[0].offset is None
    assert torch.equal(other.train(SITE), store.train(SITE))
    found = batches(StreamedRows(other, SITE, "train"), shuffle_rows=100)
    wanted = batches(in_memory(store), shuffle_rows=100)
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


def test_our_own_shards_are_read_without_decoding(store):
    segments = store.segments(store.manifest.sites[0].shards[0], "train")
    assert segments and all(segment.offset is not None for segment in segments)


def test_pages_of_large_row_groups_are_all_found(tmp_path):
    """Arrow ends a page after 20,000 rows, whatever it is told of bytes."""
    rows = torch.arange(50_000 * 2).float().view(-1, 2)
    write_store(
        tmp_path / "s", {SITE: rows}, provenance="imported", source={}, dtype="float32",
        split={"validation": 0.1, "test": 0.0},
    )  # fmt: skip
    found = raysae.open_store(tmp_path / "s")
    shard = found.manifest.sites[0].shards[0]
    whole = torch.cat([found.train(SITE), found.validation(SITE)])
    assert len(found.segments(shard, "train")) > 1
    assert sorted(map(tuple, whole.tolist())) == sorted(map(tuple, rows.tolist()))


def test_a_shard_cut_short_while_it_streams(tmp_path):
    write_synthetic_store(tmp_path / "s", SuperpositionWorld(d_in=8, atoms=16), 1000)
    rows = StreamedRows(raysae.open_store(tmp_path / "s"), SITE, "train")
    shard = next((tmp_path / "s").rglob("part-00000.parquet"))
    shard.write_bytes(shard.read_bytes()[:2000])
    with pytest.raises(UserError, match="part-00000.parquet: the file ends too early"):
        list(rows.epoch(0, 0, 64, 100))


def test_an_altered_shard_is_found_before_it_is_streamed(connected_ray, tmp_path):
    write_synthetic_store(tmp_path / "s", SuperpositionWorld(d_in=8, atoms=16), 1000)
    shard = next((tmp_path / "s").rglob("part-00000.parquet"))
    content = bytearray(shard.read_bytes())
    content[5000] ^= 1
    shard.write_bytes(content)
    store = raysae.open_store(tmp_path / "s")
    with pytest.raises(UserError, match="altered after it was written"):
        open_site(choose_reading(store, [SITE], ResourcesConfig(reading="streaming")), store, SITE)
    with pytest.raises(UserError, match="altered after it was written"):
        rows_within(store, SITE, memory=0)


def test_the_path_follows_from_the_budget(store, connected_ray):
    def choose(**resources):
        return choose_reading(store, [SITE], ResourcesConfig(**resources))

    assert choose().how == "shared" and "Ray's object store may take" in choose().why
    small = choose(memory="1 kB")
    assert small.how == "streaming" and "does not fit in memory" in str(small)
    assert choose(reading="streaming").how == "streaming"
    with pytest.raises(UserError, match="resources.reading is 'shared', but that does not fit"):
        choose(reading="shared", memory=100)
    assert isinstance(rows_within(store, SITE, 10**9).train, Rows)
    assert isinstance(rows_within(store, SITE, 10).train, StreamedRows)


def test_windows_that_do_not_fit_in_memory_are_refused(store, connected_ray, monkeypatch):
    check_windows(store, 1000, 1000, workers=4)
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"memory": 10_000.0})
    with pytest.raises(UserError, match="lower training.shuffle_rows"):
        check_windows(store, 1000, 1000, workers=4)


PEAK = """
import sys, torch, raysae
from raysae.activations.streaming import StreamedRows
store = raysae.open_store(sys.argv[1])
rows = StreamedRows(store, store.sites[0], "train")
next(rows.epoch(0, 0, 1024, 4096))
def private():
    lines = [l.split() for l in open("/proc/self/status") if l.startswith(("RssAnon", "RssShmem"))]
    return sum(int(words[1]) * 1024 for words in lines)
before, peak, total = private(), 0, 0
for number, batch in enumerate(rows.epoch(0, 0, 1024, 4096)):
    total += batch.nbytes
    peak = max(peak, private()) if number % 8 == 0 else peak
print(total, peak - before)
"""


def test_data_ten_times_the_memory_streams_at_constant_memory(tmp_path):
    """Two windows of 4 MiB each, whether the data is 30 or 300 MB."""
    grown = []
    for rows in (30_000, 300_000):
        folder = tmp_path / str(rows)
        parts = (torch.randn(10_000, 512).half() for _ in range(rows // 10_000))
        write_store(
            folder, {SITE: parts}, provenance="imported", source={}, dtype="float16",
            split={"validation": 0.01, "test": 0.0}, shard_rows=50_000,
        )  # fmt: skip
        done = subprocess.run(
            [sys.executable, "-c", PEAK, str(folder)],
            env={**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"},
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        total, more = map(int, done.stdout.split())
        assert total > 0.9 * rows * 1024
        grown.append(more)
    assert max(grown) < 24 * 2**20 < 300_000 * 1024 / 10
    assert grown[1] < grown[0] + 4 * 2**20


def test_a_cyclic_epoch_begins_where_a_scan_is_and_goes_round(store, service):
    """It takes every row once, another order each time, and continues from a saved position."""
    site = ScannedSite(str(store.opened_by), SITE, service, piece_bytes=1_000, cyclic=True)
    before, rows = site.rows("train"), site.rows("train")
    options = {"seed": 3, "epochs": 1, "batch_size": 48, "shuffle_rows": 100}
    ahead = before.epoch(3, 0, 48, 100)
    for _ in range(12):  # memory holds 281 rows, so the first pieces are gone
        next(ahead)
    stream = Stream(rows, **options)
    taken, positions = [], []
    for batch in stream:
        taken.append(batch.clone())
        positions.append(json.loads(json.dumps(asdict(stream.position))))
    assert positions[0]["first"] > 0
    whole = store.train(SITE)
    assert sorted(map(tuple, torch.cat(taken).tolist())) == sorted(map(tuple, whole.tolist()))
    again = Stream(site.rows("train"), **options, position=StreamPosition(**positions[4]))
    assert all(torch.equal(a, b) for a, b in zip(again, taken[5:], strict=True))
    ahead.close()
