"""Processes of a scan that are killed: every reader that is left gets every row once, in its order."""

import os
import time
from itertools import islice
from pathlib import Path

import pytest
import ray
import torch

import raysae
from raysae.activations import Site
from raysae.activations.streaming import StreamedRows
from raysae.activations.synthetic import SuperpositionWorld, write_synthetic_store
from raysae.cluster.ray_internals import actor_is_dead
from raysae.cluster.scan.opening import serving
from raysae.cluster.scan.rows import ScannedSite
from tests.processes import kill, processes_below

SITE = Site(0, "all")
BATCH, WINDOW = 50, 400
PIECE_ROWS = 100
ROW_BYTES = 64
MEMORY = 9 * PIECE_ROWS * ROW_BYTES
"""Two windows of pieces and one more: a reader that stands still soon holds the others back."""


@pytest.fixture(scope="module")
def store(connected_ray, tmp_path_factory):
    folder = tmp_path_factory.mktemp("scanned") / "store"
    world = SuperpositionWorld(d_in=ROW_BYTES // 4, atoms=24, p=0.08)
    write_synthetic_store(folder, world, 6000, validation=0.1, test=0.0)
    return raysae.open_store(folder)


class Trial:
    """A process that reads an epoch, as far as the test wants."""

    def __init__(self, site):
        self.batches = site.rows("train").epoch(0, 1, BATCH, WINDOW)

    def read(self, batches=None):
        """The next rows; all that are left with None."""
        return torch.cat([batch_BD.clone() for batch_BD in islice(self.batches, batches)])

    def actor(self):
        return ray.get_runtime_context().get_actor_id(), os.getpid()


def says_dead(actor):
    """What a worker finds out."""
    return ray.get(ray.remote(num_cpus=0)(actor_is_dead).remote(actor))


def trials(store, service, count):
    site = ScannedSite(str(store.path), SITE, service, PIECE_ROWS * ROW_BYTES)
    return [ray.remote(num_cpus=1)(Trial).remote(site) for _ in range(count)]


def expected(store):
    return torch.cat(list(StreamedRows(store, SITE, "train").epoch(0, 1, BATCH, WINDOW)))


def begun(store, service):
    """Two trials that have read some batches of the same scan, and what they have read."""
    found = trials(store, service, 2)
    return found, ray.get([one.read.remote(3) for one in found])


def test_a_killed_actor_is_dead_and_no_other(connected_ray, store):
    with serving(MEMORY, 2, 1, None) as service:
        killed, left = trials(store, service, 2)
        asked = ray.get([killed.actor.remote(), left.actor.remote()])
        names = [name for name, _ in asked]
        assert [actor_is_dead(name) for name in names] == [False, False]
        assert not says_dead(names[0])
        assert kill(asked[0][1])
        until = time.monotonic() + 30
        while not actor_is_dead(names[0]) and time.monotonic() < until:
            time.sleep(0.05)
        assert actor_is_dead(names[0]) and says_dead(names[0])
        assert not actor_is_dead(names[1]) and not actor_is_dead("") and not actor_is_dead("0" * 32)


@pytest.mark.long
def test_readers_go_on_when_the_service_is_killed(store):
    with serving(MEMORY, 2, 1, None) as service:
        both, first = begun(store, service)
        (pid,) = processes_below(b"ray::ScanService")
        assert kill(pid)
        rest = ray.get([one.read.remote() for one in both])
        for a, b in zip(first, rest, strict=True):
            assert torch.equal(torch.cat([a, b]), expected(store))
        assert ray.get(service.counts.remote())["scans"] >= 1, "of the new service"


@pytest.mark.long
def test_a_reading_task_that_is_killed_is_read_again(store):
    with serving(MEMORY, 2, 1, None) as service:
        both, first = begun(store, service)
        rest = [one.read.remote() for one in both]
        killed = killed_while_it_reads(rest)
        for a, b in zip(first, ray.get(rest), strict=True):
            assert torch.equal(torch.cat([a, b]), expected(store))
        assert killed == 1


def killed_while_it_reads(running):
    """Kill the first worker that reads a piece, unless ``running`` ends before; how many were killed."""
    while len(ray.wait(running, num_returns=len(running), timeout=0)[0]) < len(running):
        for pid in processes_below(b"ray::"):
            if named(pid).startswith(b"ray::Read") and kill(pid):
                return 1
    return 0


def named(pid):
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


@pytest.mark.long  # it takes 10 s to notice
@pytest.mark.parametrize("waits", [False, True])
def test_a_trial_that_dies_lets_go_of_what_it_held(store, waits):
    """Memory is full and the other waits; the dead one worked on its rows, or waited for a piece."""
    with serving(MEMORY, 2, 1, None) as service:
        (dies, stays), (_, first) = begun(store, service)
        rest = stays.read.remote()
        if waits:
            dies.read.remote()
        else:
            assert not ray.wait([rest], timeout=3)[0], "the slower holds it back"
        ray.kill(dies)
        assert torch.equal(torch.cat([first, ray.get(rest, timeout=90)]), expected(store))
        assert ray.get(service.counts.remote())["scans"] == 1, "it goes on in the same scan"
        assert ray.get(service.counts.remote())["most_held"] <= MEMORY + PIECE_ROWS * ROW_BYTES


@pytest.mark.long
def test_a_trial_that_begins_again_goes_on_where_it_was(store):
    with serving(MEMORY, 2, 1, None) as service:
        (dies, stays), (_, first) = begun(store, service)
        ray.kill(dies)
        rest = stays.read.remote()
        (again,) = trials(store, service, 1)
        assert torch.equal(ray.get(again.read.remote(), timeout=90), expected(store))
        assert torch.equal(torch.cat([first, ray.get(rest, timeout=90)]), expected(store))
