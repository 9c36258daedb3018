"""How many workers fit, on Rays of known sizes."""

from types import SimpleNamespace

import pytest
import ray
import torch

from raysae.cluster import gpus
from raysae.cluster import placement as placement_module
from raysae.cluster.gpus import Memory
from raysae.cluster.placement import beside_live, beside_scans, can_scan, place, scan_cpus
from raysae.cluster.worker import prepare_worker
from raysae.config import ResourcesConfig
from raysae.errors import UserError
from tests.simulated_gpu import SimulatedGPU


@pytest.mark.parametrize(
    ("there", "asked", "expected"),
    [
        ({"CPU": 2}, {}, (1, 0, 2)),
        ({"CPU": 2}, {"cpus_per_trial": 2}, (2, 0, 1)),
        ({"CPU": 4}, {"cpus_per_trial": 0.5}, (0.5, 0, 8)),
        ({"CPU": 16}, {"max_concurrent": 3}, (1, 0, 3)),
        ({"CPU": 16, "GPU": 1}, {}, (1, 1, 1)),
        ({"CPU": 2, "GPU": 4}, {}, (1, 1, 2)),
        ({"CPU": 16, "GPU": 2}, {"gpus_per_trial": 0.4}, (1, 0.4, 4)),
        ({"CPU": 16, "GPU": 4}, {"gpus_per_trial": 1}, (1, 1, 4)),
        ({"CPU": 16, "GPU": 1}, {"gpus_per_trial": 0}, (1, 0, 16)),
    ],
)
def test_what_fits(monkeypatch, there, asked, expected):
    monkeypatch.setattr(ray, "cluster_resources", lambda: there)
    monkeypatch.setenv("RAYSAE_LOGICAL_GPUS", "1")
    placement = place(ResourcesConfig(**asked))
    assert (placement.cpus, placement.gpus, placement.workers) == expected


GIB = 2**30


@pytest.fixture
def one_gpu(monkeypatch):
    """A GPU of 16 GiB, of which one is taken."""
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 16, "GPU": 1})
    monkeypatch.setattr(placement_module, "least_memory", lambda: Memory(15 * GIB, 16 * GIB))


@pytest.mark.parametrize(
    ("asked", "memory", "rows", "words"),
    [
        ("auto", 15 * GIB, 0, r"takes 15.6 GiB, and a GPU here has 15.0 GiB free"),
        ("auto", 10 * GIB, 5 * GIB, r"takes 15.6 GiB, and a GPU here has 15.0 GiB"),
        (0.25, 4 * GIB, 0, r"takes 4.6 GiB, and 0.25 of a GPU here has 4.0 .*, raise resources.gpus_p"),
        (0.03, GIB, 0, r"0.48 GiB of a GPU here, but CUDA itself takes 0.59 .*at least 0.10"),
    ],
)  # fmt: skip
def test_what_does_not_fit_on_its_part_of_a_gpu(one_gpu, asked, memory, rows, words):
    with pytest.raises(UserError, match=words):
        place(ResourcesConfig(gpus_per_trial=asked), memory, rows=rows)


def test_what_does(one_gpu):
    assert place(ResourcesConfig(), 14 * GIB).gpus == 1
    assert place(ResourcesConfig(), 10 * GIB, rows=9 * GIB).gpus == 1, "such rows stay in memory"
    assert place(ResourcesConfig(gpus_per_trial=0.25), 3 * GIB).workers == 4
    assert place(ResourcesConfig(gpus_per_trial=0), 14 * GIB).workers == 16


def test_gpus_that_torch_cannot_use_are_refused_unless_cpus_are_asked_for(monkeypatch):
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 16, "GPU": 1})
    monkeypatch.setattr(gpus, "_seen", lambda: [Memory(1, 1), gpus.look_here()])
    for asked in ("auto", 0.5):
        with pytest.raises(
            UserError, match=r"torch cannot use: on .* is a build for CPUs. Install"
        ):
            place(ResourcesConfig(gpus_per_trial=asked))
    assert place(ResourcesConfig(gpus_per_trial=0)).gpus == 0


def test_an_old_driver_is_named(monkeypatch):
    def init():
        raise RuntimeError("The NVIDIA driver on your system is too old (found 11040).\nUpdate")

    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "init", init)
    assert gpus.look_here().endswith("(The NVIDIA driver on your system is too old (found 11040).)")


def test_a_process_is_held_to_its_part_of_a_gpu(monkeypatch):
    gpu = SimulatedGPU(16 * GIB).install(monkeypatch)
    gpus.limit_memory(0.25)
    assert gpu.fraction * 16 * GIB == pytest.approx(4 * GIB - gpus.CUDA_CONTEXT)
    gpus.limit_memory(0.01)
    assert gpu.fraction == 0
    assert gpus.cost_of_sharing(1) is None and gpus.cost_of_sharing(0) is None
    assert gpus.cost_of_sharing(0.25).startswith("Up to 4 processes share a GPU: they take turns")


def test_a_worker_with_a_gpu_that_torch_cannot_use_does_not_take_the_cpu(monkeypatch):
    def context(gpus_here, share):
        return SimpleNamespace(
            get_accelerator_ids=lambda: {"GPU": gpus_here},
            get_assigned_resources=lambda: {"GPU": share},
        )

    monkeypatch.setattr(ray, "get_runtime_context", lambda: context(["0"], 0.5))
    with pytest.raises(UserError, match="gave this worker a GPU that torch cannot use"):
        prepare_worker()
    gpu = SimulatedGPU(16 * GIB).install(monkeypatch)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert prepare_worker() == "cuda" and 0.4 < gpu.fraction < 0.5
    monkeypatch.setattr(ray, "get_runtime_context", lambda: context([], 0))
    assert prepare_worker() == "cpu"


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
        ({"CPU": 16, "GPU": 1}, {}, (1, 1.0), (1, 1.0)),
        ({"CPU": 16, "GPU": 4}, {}, (3, 1.0), (1, 1.0)),
    ],
)  # fmt: skip
def test_live_rows_have_workers_of_their_own(monkeypatch, there, asked, trials, computing):
    monkeypatch.setattr(ray, "cluster_resources", lambda: there)
    monkeypatch.setenv("RAYSAE_LOGICAL_GPUS", "1")
    found = beside_live(ResourcesConfig(**asked))
    assert [(one.workers, one.cpus) for one in found] == [trials, computing]


def test_one_worker_of_several_cpus_is_too_little_for_live_rows(monkeypatch):
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 2})
    with pytest.raises(UserError, match=r"1 worker of 2 CPU .* fits .* set source.live to false"):
        beside_live(ResourcesConfig(cpus_per_trial=2))
