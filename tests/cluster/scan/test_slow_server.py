"""A scan through Ray of a store on a slow S3 server, which loses an object in the middle."""

import sys
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlencode

import pytest
import torch

from raysae.activations.store import open_store
from raysae.activations.synthetic import SuperpositionWorld, write_synthetic_store
from raysae.cluster.scan.opening import serving
from raysae.cluster.scan.rows import ScannedSite
from raysae.errors import UserError
from raysae.sites import Site
from tests.conftest import LOOPBACK_S3

sys.path.insert(0, str(Path(__file__).parents[3] / "scripts"))
from file_server import file_server

sys.path.pop(0)

SITE, ROWS, PIECE = Site(0, "all"), 2000, 4_000
SHARD = "layer=00/position=all/part-00006.parquet"


@pytest.fixture(autouse=True)
def with_key(monkeypatch):
    for name, value in LOOPBACK_S3.items():
        monkeypatch.setenv(name, value)


@contextmanager
def served(folder, rate):
    """A store in ``folder/bucket/store`` on a server of its own; the server and the URI."""
    world = SuperpositionWorld(d_in=16, atoms=32)
    write_synthetic_store(folder / "bucket" / "store", world, ROWS, shard_rows=300)
    with file_server(folder, rate) as server:
        where = server.environment["AWS_ENDPOINT_URL"].removeprefix("http://")
        asked = {"endpoint_override": where, "scheme": "http", "region": "us-east-1"}
        yield server, f"s3://bucket/store?{urlencode(asked)}"


def epoch(rows):
    return torch.cat([batch.clone() for batch in rows.epoch(0, 0, 64, 500)])


@pytest.mark.parametrize(("pause", "rate"), [(0.01, None), (0.0, 100_000)], ids=["late", "thin"])
def test_a_slow_server_is_waited_for_and_gives_the_same_rows(connected_ray, tmp_path, pause, rate):
    with (
        served(tmp_path, rate) as (server, uri),
        serving(memory=2**24, workers=1, each=1, patience=None) as service,
    ):
        server.pause = pause
        store = open_store(tmp_path / "bucket" / "store")
        scanned = epoch(ScannedSite(uri, SITE, service, PIECE).rows("train"))
        assert torch.equal(scanned, epoch(store.site(SITE, memory=0).train))
        whole = store.entry(SITE).rows.train * store.row_bytes
        assert server.bytes_of("bucket/store/layer=00") >= whole


def test_an_object_that_a_slow_server_loses_in_mid_scan_is_named(connected_ray, tmp_path):
    """The scan fails at once, and goes on from there when the object is back."""
    with (
        served(tmp_path, None) as (server, uri),
        serving(memory=3 * PIECE, workers=1, each=1, patience=None) as service,
    ):
        server.pause = 0.02
        rows = ScannedSite(uri, SITE, service, PIECE).rows("train")
        batches = rows.epoch(0, 0, 64, 100)
        first = next(batches).clone()
        file = tmp_path / "bucket" / "store" / SHARD
        content = file.read_bytes()
        file.unlink()
        with pytest.raises(UserError, match=r"part-00006.parquet: missing"):
            list(batches)
        file.write_bytes(content)
        assert torch.equal(next(rows.epoch(0, 0, 64, 100)), first)
