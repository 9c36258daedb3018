"""The free memory of a device, by a simulated allocator."""

from raysae.training.memory import free_bytes, release_cached
from tests.simulated_gpu import SimulatedGPU

GIB = 2**30


def test_blocks_that_torch_has_cached_are_free(monkeypatch):
    gpu = SimulatedGPU(16 * GIB, others=GIB, allocated=2 * GIB, cached=9 * GIB).install(monkeypatch)
    assert gpu.free() == 4 * GIB
    assert free_bytes("cuda") == free_bytes("cuda:0") == 13 * GIB


def test_what_is_cached_is_given_back_on_gpus_alone(monkeypatch):
    gpu = SimulatedGPU(16 * GIB, cached=9 * GIB).install(monkeypatch)
    release_cached("cpu")
    assert gpu.emptied == 0
    release_cached("cuda:0")
    assert (gpu.emptied, gpu.free()) == (1, 16 * GIB)
