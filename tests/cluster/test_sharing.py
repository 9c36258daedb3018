"""One copy of a site for all workers of a node, the rows in the store's own order."""

import ray
import torch

import raysae
from raysae.activations import Site
from raysae.activations.synthetic import SuperpositionWorld, write_synthetic_store
from raysae.activations.writer import write_store
from raysae.cluster.sharing import share_site

SITE = Site(0, "all")


def test_shared_rows_are_the_stores(connected_ray, tmp_path):
    write_synthetic_store(tmp_path / "s", SuperpositionWorld(d_in=8, atoms=16), 500, shard_rows=167)
    store = raysae.open_store(tmp_path / "s")
    shared = share_site(store, SITE)
    assert len(shared.tensors("train")) == 1
    assert torch.equal(torch.cat(shared.tensors("train")), store.train(SITE))
    assert torch.equal(torch.cat(shared.tensors("validation")), store.validation(SITE))


def test_a_site_is_one_block_however_large(connected_ray, tmp_path):
    """Ray Data would cut what a task returns at 128 MiB."""
    write_store(
        tmp_path / "s", {SITE: torch.randn(80_000, 1024).half()}, provenance="imported", source={},
        dtype="float16", split={"validation": 0.01, "test": 0.0},
    )  # fmt: skip
    store = raysae.open_store(tmp_path / "s")
    shared = share_site(store, SITE)
    assert len(shared.tensors("train")) == 1
    assert torch.equal(shared.tensors("train")[0], store.train(SITE))


@ray.remote(num_cpus=1)
class Reader:
    """A worker that maps a site and tells what memory of its own that took."""

    def read(self, shared):
        before = private_bytes()
        self.tensors = shared.tensors("train")
        total = sum(float(rows.sum(dtype=torch.float64)) for rows in self.tensors)
        return total, private_bytes() - before


def private_bytes():
    with open("/proc/self/smaps_rollup") as file:
        lines = [line.split() for line in file if line.startswith("Private")]
    return sum(int(words[1]) * 1024 for words in lines)


def test_workers_map_one_copy(connected_ray, tmp_path):
    rows = torch.randn(60_000, 256)
    write_store(
        tmp_path / "s", {SITE: rows}, provenance="imported", source={}, dtype="float32",
        split={"validation": 0.01, "test": 0.0},
    )  # fmt: skip
    shared = share_site(raysae.open_store(tmp_path / "s"), SITE)
    readers = [Reader.remote() for _ in range(3)]
    ray.get([reader.read.remote(shared) for reader in readers])  # imports, warm-up
    found = ray.get([reader.read.remote(shared) for reader in readers])
    size = rows.numel() * rows.element_size()
    for total, grown in found:
        assert total == found[0][0]
        assert grown < size / 10
    for reader in readers:
        ray.kill(reader)
