"""One copy of a site for all workers of a node, the rows in the store's own order."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import ray
import torch

import raysae
from raysae.activations import Site
from raysae.activations.schema import to_torch
from raysae.activations.synthetic import SuperpositionWorld, write_synthetic_store
from raysae.activations.writer import write_store
from raysae.cluster.sharing import pieces_of, read_piece, share_site

SITE = Site(0, "all")
PROGRAM = Path(__file__).with_name("sharing_program.py")


def written(folder, rows, name="s", dtype="float32", shard_rows=None):
    """A store of these rows at one site, opened."""
    write_store(
        folder / name, {SITE: rows}, provenance="imported", source={}, dtype=dtype,
        split={"validation": 0.01 if len(rows) > 10_000 else 0.1, "test": 0.0}, shard_rows=shard_rows,
    )  # fmt: skip
    return raysae.open_store(folder / name)


def test_shared_rows_are_the_stores(connected_ray, tmp_path):
    write_synthetic_store(tmp_path / "s", SuperpositionWorld(d_in=8, atoms=16), 500, shard_rows=167)
    store = raysae.open_store(tmp_path / "s")
    shared = share_site(store, SITE)
    assert len(shared.tensors("train")) == 1
    assert torch.equal(torch.cat(shared.tensors("train")), store.train(SITE))
    assert torch.equal(torch.cat(shared.tensors("validation")), store.validation(SITE))


def test_a_large_site_is_read_in_pieces_by_tasks(connected_ray, tmp_path):
    store = written(tmp_path, torch.randn(5000, 64))
    shared = share_site(store, SITE, piece_bytes=100_000)
    sizes = [len(rows) for rows in shared.tensors("train")]
    assert len(sizes) == -(-store.entry(SITE).rows.train * 256 // 99_840)
    assert max(sizes) - min(sizes) < 2
    assert torch.equal(torch.cat(shared.tensors("train")), store.train(SITE))
    assert torch.equal(torch.cat(shared.tensors("validation")), store.validation(SITE))


def test_the_order_does_not_depend_on_the_pieces(connected_ray, tmp_path):
    store = written(tmp_path, torch.randn(2000, 16))
    one, many = share_site(store, SITE), share_site(store, SITE, piece_bytes=10_000)
    assert len(one.blocks["train"]) == 1 < len(many.blocks["train"])
    for shuffle_rows in (100, 5000):
        epochs = [site.rows("train").epoch(0, 1, 96, shuffle_rows) for site in (one, many)]
        for a, b in zip(*epochs, strict=True):
            assert torch.equal(a, b)


def test_a_piece_of_256_mib_is_one_block(connected_ray, tmp_path):
    """Ray Data would cut what a task returns at 128 MiB."""
    store = written(tmp_path, torch.randn(80_000, 1024).half(), dtype="float16")
    shared = share_site(store, SITE)
    assert len(shared.tensors("train")) == 1
    assert torch.equal(shared.tensors("train")[0], store.train(SITE))


def test_pieces_cut_shards_and_pages_anywhere(tmp_path):
    store = written(tmp_path, torch.randn(1000, 16), shard_rows=300)
    for most in (1, 7, 299, 1000):
        pieces = list(pieces_of(store, SITE, most, ["train"]))
        assert all(0 < piece.stop - piece.start <= most for piece in pieces)
        if most == 1:
            continue
        blocks = [
            rows
            for piece in pieces
            for rows in to_torch(read_piece(store, SITE, piece)["activation"], "float32")
        ]
        assert torch.equal(torch.cat(blocks), store.train(SITE))


@pytest.mark.long
def test_all_nodes_read_pull_and_make_good_for_a_lost_one(tmp_path):
    written(tmp_path, torch.randn(20_000, 512), name="store", shard_rows=7000)
    done = subprocess.run(
        [sys.executable, str(PROGRAM), str(tmp_path)], check=False, capture_output=True, text=True,
        env={**os.environ, "RAYSAE_CACHE": str(tmp_path / "cache-driver")}, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    told = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("{")))
    assert told["lost"] > 0
    assert (told["readers"], told["pulled"], told["equal"]) == (3, True, True)


@ray.remote(num_cpus=1)
class Reader:
    """A worker that maps a site and tells what memory of its own that took."""

    def read(self, shared):
        before = private_bytes()
        self.tensors = shared.tensors("train")
        digest = hashlib.sha256()  # a sum of floats would depend on the number of threads
        for rows_ND in self.tensors:
            digest.update(rows_ND.numpy())
        return digest.hexdigest(), private_bytes() - before


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
    for digest, grown in found:
        assert digest == found[0][0]
        assert grown < size / 10
    for reader in readers:
        ray.kill(reader)
