"""How many workers fit, on Rays of known sizes."""

import pytest
import ray

from raysae.cluster import placement as placement_module
from raysae.cluster.placement import beside_live, beside_scans, can_scan, place, scan_cpus
from raysae.config import ResourcesConfig
from raysae.errors import UserError


@pytest.mark.parametrize(
    ("there", "asked", "expected"),
    [
        ({"CPU": 2}, {}, (1, 0, 2)),
        ({"CPU": 2}, {"cpus_per_trial": 2}, (2, 0, 1)),
        ({"CPU": 4}, {"cpus_per_trial": 0.5}, (0.5, 0, 8)),
        ({"CPU": 16}, {"max_concurrent": 3}, (1, 0, 3)),
        ({"CPU": 16, "GPU": 1}, {}, (1, 0.25, 4)),
        ({"CPU": 2, "GPU": 1}, {}, (1, 0.25, 2)),
        ({"CPU": 16, "GPU": 2}, {"gpus_per_trial": 0.4}, (1, 0.4, 4)),
        ({"CPU": 16, "GPU": 4}, {"gpus_per_trial": 2}, (1, 2, 2)),
        ({"CPU": 16, "GPU": 1}, {"gpus_per_trial": 0}, (1, 0, 16)),
    ],
)
def test_what_fits(monkeypatch, there, asked, expected):
    monkeypatch.setattr(ray, "cluster_resources", lambda: there)
    monkeypatch.setattr(placement_module, "_gpu_memory", lambda: None)  # logical GPUs
    placement = place(ResourcesConfig(**asked))
    assert (placement.cpus, placement.gpus, placement.workers) == expected


GIB = 2**30


@pytest.mark.parametrize(
    ("gpu_memory", "trial_memory", "share"),
    [(80 * GIB, GIB, 1 / 8), (16 * GIB, 3 * GIB, 1 / 4), (16 * GIB, 10 * GIB, 1)],
)
def test_auto_takes_the_part_of_a_gpu_that_holds_a_trial(
    monkeypatch, gpu_memory, trial_memory, share
):
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 16, "GPU": 1})
    monkeypatch.setattr(placement_module, "_gpu_memory", lambda: gpu_memory)
    assert place(ResourcesConfig(), trial_memory).gpus == share
    with pytest.raises(UserError, match=r"takes 90.6 GiB, and a GPU here has"):
        place(ResourcesConfig(), 90 * GIB)


def test_memory_admits_no_more_than_fit(monkeypatch):
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 16, "memory": 10.0 * GIB})
    assert place(ResourcesConfig(), 2 * GIB).workers == 3, "a worker's libraries count"
    with pytest.raises(UserError, match=r"takes 20.4 GiB, and this Ray has 10.0 GiB"):
        place(ResourcesConfig(), 20 * GIB)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"gpus_per_trial": 1}, "gpus_per_trial is 1, but this Ray has 0 GPUs"),
        ({"cpus_per_trial": 3}, "cpus_per_trial is 3, but this Ray has 2 CPUs"),
    ],
)
def test_what_does_not(monkeypatch, asked, words):
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 2})
    with pytest.raises(UserError, match=words):
        place(ResourcesConfig(**asked))


def test_a_worker_takes_the_device_and_the_threads_it_was_given(connected_ray):
    @ray.remote(num_cpus=2)
    def look():
        import torch

        from raysae.cluster.worker import prepare_worker

        return prepare_worker(), torch.get_num_threads()

    assert ray.get(look.remote()) == ("cpu", 2)


@pytest.fixture
def two_nodes(monkeypatch):
    """Two nodes are alive, and one is dead."""
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": a} for a in (True, True, False)])


@pytest.mark.parametrize(
    ("cpus", "asked", "workers"),
    [(4, {}, 2), (8, {"max_concurrent": 3}, 3), (4, {"cpus_per_trial": 0.5}, 4), (3, {}, 1)],
)
def test_scans_have_a_cpu_of_each_node(monkeypatch, two_nodes, cpus, asked, workers):
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": cpus})
    assert scan_cpus() == 2 and can_scan(ResourcesConfig(**asked))
    assert beside_scans(ResourcesConfig(**asked)).workers == workers


def test_no_cpu_left_for_reading_is_refused_with_what_to_do(monkeypatch, two_nodes):
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 2.0})
    assert not can_scan(ResourcesConfig())
    with pytest.raises(
        UserError, match=r"takes 2 of the 2 CPUs .* set resources.reading to stream"
    ):
        beside_scans(ResourcesConfig())


@pytest.mark.parametrize(
    ("there", "asked", "trials", "computing"),
    [
        ({"CPU": 1}, {}, (1, 0.5), (1, 0.5)), ({"CPU": 5}, {}, (5, 0.5), (5, 0.5)),
        ({"CPU": 8}, {"max_concurrent": 3}, (3, 0.5), (3, 0.5)),
        ({"CPU": 9}, {"cpus_per_trial": 2}, (2, 2.0), (4, 1.0)),
        ({"CPU": 16, "GPU": 1}, {}, (3, 1.0), (1, 1.0)),
    ],
)  # fmt: skip
def test_live_rows_have_workers_of_their_own(monkeypatch, there, asked, trials, computing):
    monkeypatch.setattr(ray, "cluster_resources", lambda: there)
    monkeypatch.setattr(placement_module, "_gpu_memory", lambda: None)
    found = beside_live(ResourcesConfig(**asked))
    assert [(one.workers, one.cpus) for one in found] == [trials, computing]


def test_one_worker_of_several_cpus_is_too_little_for_live_rows(monkeypatch):
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 2})
    with pytest.raises(UserError, match=r"1 worker of 2 CPU .* fits .* set source.live to false"):
        beside_live(ResourcesConfig(cpus_per_trial=2))
