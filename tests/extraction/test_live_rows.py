"""Live rows as they are trained on: those of the kept store, in order, whatever reads them and when."""

import shutil
import threading

import pytest
import torch

import raysae.cluster.scan.buffer as buffer_module
import raysae.cluster.scan.service as service_module
from raysae.cluster.placement import Placement
from raysae.cluster.scan.opening import ScanPlan
from raysae.errors import UserError
from raysae.extraction.keeping import finish_kept
from raysae.extraction.live import LiveExtractor
from raysae.extraction.live_rows import KeptSite, LiveRows, LiveSite, live_sites, ordered
from raysae.extraction.live_scan import LiveData, LiveScan, largest_piece
from raysae.extraction.plan import existing_store, plan_extraction
from raysae.remembered import forget_all
from raysae.sae import sae_config
from raysae.sites import Site
from raysae.training import TrainingConfig
from raysae.training.ensemble import Ensemble, Member
from raysae.training.headed_rows import HeadedRows
from raysae.training.rows import Rows, Stream, StreamPosition
from tests.cluster.scan.here import counts, serve_here
from tests.extraction.local_pool import extracted_here, live_recipe

ONE, POOL, TOP = Site(0, -1), Site(0, "all"), Site(3, -1)
"""One row a sequence, several, and one at another layer."""
SITES = (ONE, POOL, TOP)
MEMORY = 2**24
HERE = Placement(cpus=1, gpus=0, workers=1)


@pytest.fixture(scope="module")
def live(tmp_path_factory):
    """A live store and its plan. Shards hold few sequences, and so one has no training row."""
    with pytest.MonkeyPatch.context() as patch:
        recipe = live_recipe(tmp_path_factory.mktemp("live") / "store", "source.layers=[0, 3]")
        return extracted_here(patch, recipe)


@pytest.fixture(scope="module")
def wanted(live):
    """The training rows of each site, shard after shard."""
    store, plan = live
    extractor = LiveExtractor(plan, SITES)
    shards = [extractor.rows(number) for number in range(store.live.shards)]
    return {site: torch.cat([rows[site] for rows in shards]) for site in SITES}


@pytest.fixture
def copied(live, tmp_path):
    """A copy of the live store, to be kept, and its plan."""
    store, _ = live
    shutil.copytree(store.path, tmp_path / "store")
    plan = plan_extraction(live_recipe(tmp_path / "store", "source.layers=[0, 3]"))
    return existing_store(plan), plan


@pytest.fixture
def service(monkeypatch):
    forget_all()
    yield serve_here(monkeypatch, MEMORY)
    forget_all()


def data_of(plan, sites=SITES, keep=False, epochs=1):
    return LiveData(plan, sites, keep, HERE, epochs)


def live_rows(store, site, service, data):
    return LiveRows(store, site, service, data, piece_bytes=2_000)


def batches(rows, epochs=1, **options):
    options = {"seed": 3, "batch_size": 48, "shuffle_rows": 90, **options}
    return [b.clone() for b in Stream(rows, epochs=epochs, **options)]


def same(found, wanted):
    return len(found) == len(wanted) and all(map(torch.equal, found, wanted))


def in_memory(wanted, site):
    return Rows(wanted[site], sequential=True)


@pytest.mark.parametrize("site", SITES, ids=str)
@pytest.mark.parametrize("window", [48, 100_000])
def test_live_rows_come_in_the_order_of_the_shards(live, wanted, service, site, window):
    store, plan = live
    rows = live_rows(store, site, service, data_of(plan))
    assert len(rows) == len(wanted[site]) and rows.sequential and rows.passing
    found = batches(rows, shuffle_rows=window)
    assert same(found, batches(in_memory(wanted, site), shuffle_rows=window))
    assert counts(service)["tokens"] == store.live.tokens


def test_all_rows_in_order_are_a_pass_more(live, wanted, service):
    store, plan = live
    rows = live_rows(store, POOL, service, data_of(plan))
    assert torch.equal(torch.cat(list(rows.batches(37))), wanted[POOL])
    with pytest.raises(UserError, match="computed while training"):
        rows.read(0, 5)


@pytest.mark.parametrize("taken", [1, 90])
@pytest.mark.parametrize(("epoch", "epochs"), [(0, 1), (0, 2), (1, 2), (1, 1)])
def test_an_epoch_is_sought(live, wanted, service, taken, epoch, epochs):
    """Also one beyond those that every training has (of the last case), which is a pass of its own."""
    store, plan = live
    position, asked = StreamPosition(epoch, taken), {"epochs": epoch + 1}
    rows = live_rows(store, ONE, service, data_of(plan, epochs=epochs))
    found = batches(rows, position=position, **asked)
    assert found and same(found, batches(in_memory(wanted, ONE), position=position, **asked))
    more = service_module.BEHIND * max(shard.tokens for shard in store.live.entry.shards)
    assert counts(service)["tokens"] <= store.live.tokens + more


@pytest.mark.parametrize("epochs", [2, 3])
def test_epochs_follow_each_other_in_one_scan(live, wanted, service, epochs):
    store, plan = live
    rows = live_rows(store, POOL, service, data_of(plan, epochs=epochs))
    assert same(batches(rows, epochs), batches(in_memory(wanted, POOL), epochs))
    told = counts(service)
    assert told["scans"] == 1 and told["tokens"] == epochs * store.live.tokens


def test_a_reader_that_pauses_for_long_begins_a_scan_of_its_own(live, wanted, service, monkeypatch):
    store, plan = live
    monkeypatch.setattr(buffer_module, "PAUSE_SECONDS", 0.0)
    rows = live_rows(store, POOL, service, data_of(plan, epochs=2))
    found = []
    for epoch in range(2):
        position = StreamPosition(epoch)
        found += batches(rows, epoch + 1, position=position)
        with service.service._lock:  # as the service's own look does
            for running in list(service.service._running.values()):
                service.service._close_if_idle(running)
    assert same(found, batches(in_memory(wanted, POOL), 2))
    assert counts(service)["scans"] == 2


def test_several_sites_share_a_pass(live, wanted, monkeypatch):
    store, plan = live
    service = serve_here(monkeypatch, MEMORY, readers=3, apart=True)
    data, found = data_of(plan, epochs=2), {}

    def read(site):
        found[site] = batches(live_rows(store, site, service, data), 2)

    threads = [threading.Thread(target=read, args=(site,)) for site in SITES]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert all(same(found[site], batches(in_memory(wanted, site), 2)) for site in SITES)
    assert counts(service)["tokens"] == 2 * store.live.tokens


def member(rows, held_out, seed=0, epochs=2):
    settings = TrainingConfig(epochs=epochs, batch_size=48, shuffle_rows=90, evaluations=2)
    return Member(sae_config({"d_sae": 16, "k": 2}), settings, rows, held_out, seed)


def trained(members):
    for _ in Ensemble(members).rounds():
        pass
    assert not [one.failure for one in members if one.failure]
    return members


def test_sites_of_one_process_keep_pace(live, monkeypatch):
    """One of them has more rows than the others, and memory holds one shard: a pass for all of them, and
    the bits of each alone."""
    store, plan = live
    service = serve_here(
        monkeypatch, largest_piece(store, SITES), readers=len(SITES), each=len(SITES)
    )
    data = data_of(plan, epochs=2)

    def members(service, sites):
        return [
            member(
                ordered(store, site, live_rows(store, site, service, data)),
                Rows(store.validation(site)),
            )
            for site in sites
        ]

    together = trained(members(service, SITES))
    told = counts(service)
    assert told["tokens"] == 2 * store.live.tokens and told["scans"] == 1
    for site, of_site in zip(SITES, together, strict=True):
        (alone,) = trained(members(serve_here(monkeypatch, MEMORY), [site]))
        assert alone.history == of_site.history
        state = of_site.trainer.model.state_dict()
        assert all(torch.equal(v, state[k]) for k, v in alone.trainer.model.state_dict().items())


def test_the_first_pass_keeps_and_the_next_epoch_reads(copied, wanted, service):
    store, plan = copied
    data = data_of(plan, keep=True, epochs=2)
    rows = ordered(store, POOL, live_rows(store, POOL, service, data))
    before = list(rows.head()), list(rows.survey(50)), rows.sample(50, 1)
    found = batches(rows, 2)
    assert same(found, batches(in_memory(wanted, POOL), 2))
    forwarded = counts(service)["tokens"]
    head = sum(shard.tokens for shard in store.live.entry.shards[: store.live.head])
    assert forwarded == store.live.tokens - head, "the head was on disk, and the second epoch read"
    kept = existing_store(plan)
    assert not kept.computes_rows and kept.digest == store.digest
    later = ordered(kept, POOL, live_rows(store, POOL, service, data))
    assert same(batches(later, 2), found) and counts(service)["tokens"] == forwarded
    assert same([*later.head()], before[0]) and torch.equal(later.sample(50, 1), before[2])
    for (at, rows_BD), (start, wanted_BD) in zip(later.survey(50), before[1], strict=True):
        assert at == start and torch.equal(rows_BD, wanted_BD)


def test_statistics_and_training_are_the_same_before_and_after_keeping(copied, service):
    store, plan = copied
    held_out = Rows(store.validation(ONE))
    live = live_rows(store, ONE, service, data_of(plan, epochs=2))
    (first,) = trained([member(ordered(store, ONE, live), held_out)])
    keeper = LiveExtractor(plan, SITES, keep=True)
    for number in range(store.live.shards):
        keeper.rows(number)
    kept = finish_kept(store)
    forget_all()
    for source in (kept.site(ONE, memory=0).train, Rows(list(kept.blocks(ONE, "train")))):
        (later,) = trained([member(ordered(kept, ONE, source), held_out)])
        assert later.history == first.history
        assert torch.equal(later.trainer.model.W_dec, first.trainer.model.W_dec)


def test_a_scan_that_breaks_off_goes_on_with_what_was_kept(copied, wanted, service):
    store, plan = copied
    data = data_of(plan, keep=True)
    epoch = live_rows(store, ONE, service, data).epoch(3, 0, 48, 48)
    first = [next(epoch).clone(), next(epoch).clone()]
    epoch.close()
    rest = batches(
        live_rows(store, ONE, service, data), shuffle_rows=48, position=StreamPosition(0, 96)
    )
    assert same([*first, *rest], batches(in_memory(wanted, ONE), shuffle_rows=48))


def test_sites_as_workers_get_them(live, service, monkeypatch):
    store, plan = live
    monkeypatch.setattr("raysae.extraction.live_rows.share_site", shared_here)
    sites = live_sites(data_of(plan), ScanPlan((ONE,), 100_000), service)
    assert set(sites) == set(SITES) and all(isinstance(one, LiveSite) for one in sites.values())
    for site in (ONE, POOL):
        held_out = torch.cat(list(sites[site].rows("validation").batches()))
        assert torch.equal(held_out, store.validation(site))
    train = sites[TOP].rows("train")
    assert isinstance(train, HeadedRows) and train.passing and train.sequential
    assert sum(map(len, train.head())) == store.head_rows(TOP)


def shared_here(store, site, splits):
    return store_site(store, site)


class store_site:
    """A site whose held-out rows lie in this process."""

    def __init__(self, store, site):
        self.store, self.site = store, site

    def rows(self, split):
        return Rows(list(self.store.blocks(self.site, split)))


def test_a_kept_site_is_read_in_the_order_of_its_shards(copied, wanted):
    store, plan = copied
    keeper = LiveExtractor(plan, SITES, keep=True)
    for number in range(store.live.shards):
        keeper.rows(number)
    kept = finish_kept(store)
    forget_all()
    site = KeptSite(str(kept.path), ONE, store_site(kept, ONE))
    assert same(batches(site.rows("train")), batches(in_memory(wanted, ONE)))
    assert torch.equal(site.rows("validation").read(0, 9), kept.validation(ONE)[:9])


def test_equal_scans_are_one_whoever_serves_them(live):
    _, plan = live
    one, other = (LiveScan(data_of(plan), 0, 2, object()) for _ in range(2))
    assert one == other and hash(one) == hash(other)
    assert one != LiveScan(data_of(plan), 1, 2, None) and one != LiveScan(data_of(plan), 0, 1, None)
    assert one != LiveScan(data_of(plan, keep=True), 0, 2, None)


def test_what_a_worker_refuses_reaches_the_reader(live, service, monkeypatch):
    """Also where Ray Data says only that a worker failed."""
    store, plan = live

    def failing(scan, first, cpus):
        yield from ()
        scan.service.refuse.remote(scan, "shard 4: layer 0: 2 rows hold NaN")
        raise RuntimeError("UDF failed to process a data block.")

    monkeypatch.setattr(LiveScan, "blocks", failing)
    with pytest.raises(UserError, match="shard 4: layer 0: 2 rows hold NaN"):
        batches(live_rows(store, ONE, service, data_of(plan)))
