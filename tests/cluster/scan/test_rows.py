"""Rows that a scan brings equal those that a trial reads for itself, to the bit."""

import threading
import time

import pytest
import torch

import raysae
from raysae.activations.streaming import StreamedRows
from raysae.activations.synthetic import SuperpositionWorld, write_synthetic_store
from raysae.cluster.scan.rows import ScannedRows, ScannedSite
from raysae.errors import UserError
from raysae.sae import sae_config
from raysae.sites import Site
from raysae.training import TrainingConfig
from raysae.training.ensemble import Ensemble, Member
from raysae.training.rows import EVALUATION_BATCH, OrdinaryRows, Stream, StreamPosition
from tests.cluster.scan.here import counts, serve_here

SITE = Site(0, "all")
PIECE = 1_000
"""Bytes of a piece: some thirty rows of the store."""


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Two sites of 1,000 rows in shards of 130."""
    folder = tmp_path_factory.mktemp("scan") / "s"
    world = SuperpositionWorld(d_in=8, atoms=16)
    write_synthetic_store(folder, world, 1000, sites=2, shard_rows=130)
    return raysae.open_store(folder)


@pytest.fixture
def service(monkeypatch):
    return serve_here(monkeypatch, memory=9_000)


def scanned(store, service, **options):
    return ScannedRows(store, SITE, "train", service, PIECE, **options)


def streamed(store, **options):
    return StreamedRows(store, SITE, "train", **options)


def batches(rows, **options):
    return [
        b.clone() for b in Stream(rows, **{"seed": 3, "epochs": 2, "batch_size": 48, **options})
    ]


def same(found, wanted):
    return len(found) == len(wanted) and all(map(torch.equal, found, wanted))


@pytest.mark.parametrize("sequential", [False, True])
@pytest.mark.parametrize("window", [1, 31, 100, 333, 262_144])
def test_every_window_gives_the_order_of_a_stream(store, service, window, sequential):
    window = max(window, 20)
    wanted = batches(streamed(store, sequential=sequential), shuffle_rows=window)
    found = batches(scanned(store, service, sequential=sequential), shuffle_rows=window)
    assert same(found, wanted)


@pytest.mark.parametrize("taken", [0, 1, 47, 100, 101, 550, 700])
def test_an_epoch_is_sought_and_no_more_read_than_needed(store, service, taken):
    wanted = batches(streamed(store), shuffle_rows=100, position=StreamPosition(1, taken))
    found = batches(scanned(store, service), shuffle_rows=100, position=StreamPosition(1, taken))
    assert same(found, wanted)
    left = len(streamed(store)) - taken // 100 * 100
    assert counts(service)["bytes"] <= (left + 4 * 100) * store.row_bytes


@pytest.mark.parametrize("count", [1, 100, 250, 5000])
@pytest.mark.parametrize("window", [100, 262_144])
def test_samples_surveys_and_rows_in_order(store, service, count, window):
    one, other = scanned(store, service), streamed(store)
    assert torch.equal(one.sample(count, 5, window), other.sample(count, 5, window))
    assert torch.equal(torch.cat(list(one.batches(37))), torch.cat(list(other.batches(37))))
    for (at, found), (start, wanted) in zip(one.survey(count), other.survey(count), strict=True):
        assert at == start and torch.equal(found, wanted)


def test_a_survey_of_many_rows(tmp_path, service):
    world = SuperpositionWorld(d_in=2, atoms=4)
    write_synthetic_store(tmp_path / "s", world, 6 * EVALUATION_BATCH)
    store = raysae.open_store(tmp_path / "s")
    found = list(scanned(store, service).survey(2 * EVALUATION_BATCH))
    wanted = list(streamed(store).survey(2 * EVALUATION_BATCH))
    assert [start for start, _ in found] == [start for start, _ in wanted]
    assert same([rows for _, rows in found], [rows for _, rows in wanted])


@pytest.mark.parametrize("kept", ["some", "no window", "one"])
def test_rows_that_are_left_out(store, service, kept):
    """Of a window without ordinary rows nothing is handed out, and the others are found all the same."""
    rows = len(streamed(store))
    ordinary_N = torch.rand(rows, generator=torch.Generator().manual_seed(1)) > 0.3
    if kept == "no window":
        ordinary_N[100:300] = False
        ordinary_N[-80:] = False
    if kept == "one":
        ordinary_N[:] = False
        ordinary_N[555] = True
    wanted = batches(OrdinaryRows(streamed(store), ordinary_N), shuffle_rows=100)
    found = batches(OrdinaryRows(scanned(store, service), ordinary_N), shuffle_rows=100)
    assert same(found, wanted) and sum(map(len, found)) == 2 * int(ordinary_N.sum())


def test_four_readers_cost_one_read_and_bounded_memory(store, monkeypatch):
    service = serve_here(monkeypatch, memory=10 * PIECE, readers=4, apart=True)
    wanted, found = batches(streamed(store), epochs=1, shuffle_rows=60), {}

    def read(number):
        rows = scanned(store, service)
        taken = []
        for batch in Stream(rows, seed=3, epochs=1, batch_size=48, shuffle_rows=60):
            time.sleep(0.001 * number)
            taken.append(batch.clone())
        found[number] = taken

    threads = [threading.Thread(target=read, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(found) == [0, 1, 2, 3] and all(same(one, wanted) for one in found.values())
    told = counts(service)
    assert told["scans"] == 1 and told["bytes"] <= 1.05 * len(streamed(store)) * store.row_bytes
    assert told["most_held"] <= 11 * PIECE


def test_memory_is_let_go_when_the_readers_are_done(store, service):
    batches(scanned(store, service), shuffle_rows=100)
    until(lambda: not service.service._running)
    assert service.service.memory.used == 0


def test_a_reader_that_stops_early_lets_go(store, service):
    epoch = scanned(store, service).epoch(3, 0, 48, 100)
    next(epoch), epoch.close()
    until(lambda: not service.service._running)
    assert service.service.memory.used == 0


def until(true, seconds=10):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_site_reads_its_held_out_rows_where_they_lie(store, service):
    place = str(store.opened_by)
    site = ScannedSite(place, SITE, service, PIECE)
    assert torch.equal(torch.cat(list(site.rows("validation").batches())), store.validation(SITE))
    held = ScannedSite(place, SITE, service, PIECE, held_out=site)
    assert isinstance(held.rows("train"), ScannedRows)


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_what_the_reading_refuses_reaches_every_reader(store, service, monkeypatch, depth):
    def failing(scan, first, cpus):
        yield from ()
        error = UserError("part-00001.parquet: gone")
        for _ in range(depth):
            outer = RuntimeError("a task failed")
            outer.__cause__ = error
            error = outer
        raise error

    monkeypatch.setattr("raysae.cluster.scan.store_scan.StoreScan.blocks", failing)
    with pytest.raises(UserError, match=r"part-00001.parquet: gone"):
        batches(scanned(store, service))


def test_what_fails_otherwise_is_told_in_one_line(store, service, monkeypatch):
    def failing(scan, first, cpus):
        yield from ()
        raise OSError(28, "No space left on device", "/there")

    monkeypatch.setattr("raysae.cluster.scan.store_scan.StoreScan.blocks", failing)
    with pytest.raises(RuntimeError, match=r"/there: No space left on device; free space there"):
        batches(scanned(store, service))


def test_several_sites_in_one_process_never_wait_for_each_other(store, monkeypatch):
    """Two trainings of one process read scans that share a memory which holds hardly a window."""
    service = serve_here(monkeypatch, memory=3 * PIECE)
    settings = TrainingConfig(epochs=2, batch_size=64, shuffle_rows=100, lr=1e-3)

    def trained(rows_of):
        members = [
            Member(
                sae_config({"d_sae": 16, "k": 2}), settings, rows_of(site),
                StreamedRows(store, site, "validation"), 0,
            )
            for site in store.sites
        ]  # fmt: skip
        for _ in Ensemble(members).rounds():
            pass
        assert not [member.failure for member in members if member.failure]
        return [member.trainer.model.W_dec for member in members]

    found = trained(lambda site: ScannedRows(store, site, "train", service, PIECE))
    assert same(found, trained(lambda site: StreamedRows(store, site, "train")))


def test_an_epoch_that_is_left_early_waits_for_nothing(store, monkeypatch):
    """What it reads ahead is held back, as memory has no room for a second window."""
    service = serve_here(monkeypatch, memory=3 * PIECE)
    epoch = scanned(store, service).epoch(0, 0, 16, 60)
    next(epoch)
    ended = threading.Thread(target=epoch.close, daemon=True)
    ended.start()
    ended.join(30)
    assert not ended.is_alive()
