"""Workers of live data that are killed: the readers get every row once, to the same bits."""

import time
from itertools import islice

import pytest
import ray
import torch

from raysae.cluster.placement import Placement
from raysae.cluster.scan.opening import divide, serving
from raysae.config.resources import ResourcesConfig
from raysae.extraction.live import LiveExtractor
from raysae.extraction.live_rows import live_sites
from raysae.extraction.live_scan import LiveData
from raysae.sites import Site
from raysae.training.rows import Rows
from tests.extraction.local_pool import extracted_here, live_recipe
from tests.processes import kill, processes_below

SITE = Site(2, "all")
BATCH, WINDOW = 32, 96


@pytest.fixture(scope="module")
def live(connected_ray, tmp_path_factory):
    """A live store, its plan, and the rows of an epoch at SITE, computed in this process."""
    with pytest.MonkeyPatch.context() as patch:
        recipe = live_recipe(tmp_path_factory.mktemp("live") / "store")
        store, plan = extracted_here(patch, recipe)
    extractor = LiveExtractor(plan, (SITE,))
    rows = Rows(torch.cat([extractor.rows(shard)[SITE] for shard in range(store.live.shards)]))
    rows.sequential = True
    return store, plan, torch.cat(list(rows.epoch(0, 0, BATCH, WINDOW)))


class Trial:
    """A process that reads an epoch, as far as the test wants, from row ``taken`` on."""

    def __init__(self, site, taken=0):
        self.batches = site.rows("train").epoch(0, 0, BATCH, WINDOW, taken)

    def read(self, batches=None):
        """The next rows; all that are left with None."""
        return torch.cat([batch_BD.clone() for batch_BD in islice(self.batches, batches)])


def sites_of(live, service, keep=False):
    store, plan, _ = live
    data = LiveData(plan, (SITE,), keep, Placement(1, 0, 1), 1)
    return live_sites(data, divide(store, [SITE], ResourcesConfig(memory=10_000_000)), service)


def trial(site, taken=0):
    return ray.remote(num_cpus=1)(Trial).remote(site, taken)


def computing():
    """The processes that compute live rows, once there is one."""
    until = time.monotonic() + 60
    while time.monotonic() < until:
        found = processes_below(b"ray::MapBatches(forward)")
        if found:
            return found
        time.sleep(0.01)
    raise AssertionError("nothing computes")


@pytest.mark.long
def test_a_computing_worker_that_is_killed_costs_nothing(live):
    with serving(3 * 16 * 1024, 2, 1, None) as service:
        site = sites_of(live, service)[SITE]
        both = [trial(site), trial(site)]
        first = [one.read.remote(2) for one in both]
        assert [kill(pid) for pid in computing()] == [True]
        ray.get(first)
        assert [kill(pid) for pid in computing()] == [True]
        rest = ray.get([one.read.remote() for one in both])
        for a, b in zip(ray.get(first), rest, strict=True):
            assert torch.equal(torch.cat([a, b]), live[2])


@pytest.mark.long
def test_a_service_or_a_trial_that_is_killed_costs_nothing(live):
    with serving(3 * 16 * 1024, 2, 1, None) as service:
        site = sites_of(live, service)[SITE]
        both = [trial(site), trial(site)]
        first = ray.get([one.read.remote(2) for one in both])
        (pid,) = processes_below(b"ray::ScanService")
        assert kill(pid)
        ray.kill(both[0])
        again = trial(site, taken=2 * BATCH)
        rest = ray.get([again.read.remote(), both[1].read.remote()])
        for a, b in zip(first, rest, strict=True):
            assert torch.equal(torch.cat([a, b]), live[2])
