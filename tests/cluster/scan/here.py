"""Scans in this process: the real service, buffer and readers; only Ray's transport is left out."""

import pickle
from itertools import islice
from types import SimpleNamespace

import pyarrow as pa
import ray

import raysae.cluster.worker as worker_module
from raysae.cluster.scan.service import ScanService, ScanSettings
from raysae.cluster.scan.source import PieceSource
from raysae.cluster.scan.store_scan import StoreScan
from raysae.extraction.live_scan import Forward, LiveScan


class Said:
    """What a method has returned, as ``ray.get`` takes it."""

    def __init__(self, value):
        self.value = value


class Here:
    """A service as its readers call it."""

    def __init__(self, service, apart):
        self.service, self.apart = service, apart

    def __getattr__(self, name):
        method = self._join if name == "join" else getattr(self.service, name)
        return SimpleNamespace(remote=lambda *arguments: Said(method(*arguments)))

    def _join(self, scan, reader, number, worker, actor):
        worker = reader if self.apart else worker
        return self.service.join(scan, reader, number, worker, actor)


def read_here(scan, first, cpus):
    """The blocks of a scan of a store, by the datasource's own tasks; copied, as Ray does."""
    pieces = list(islice(scan.pieces(), first, None))
    for task in PieceSource(scan.place, scan.site, scan.split, pieces).get_read_tasks(1):
        (table,) = task()
        yield pickle.loads(pickle.dumps(table)), table.nbytes


def computed_here(scan, first):
    """The blocks of a live scan, by its own worker."""
    worker = Forward(scan)
    for shard in islice(scan.pieces(), first, None):
        table = worker(pa.table({"shard": [shard]}))
        yield table, table.nbytes


def serve_here(patch, memory, readers=1, each=1, patience=None, apart=False):
    """A service whose scans run in this process, for ``readers`` readers of each.

    ``each`` of them are in one process; ``apart``: as if each reader were in a process of its own.
    """
    get = ray.get
    patch.setattr(ray, "get", lambda said: said.value if isinstance(said, Said) else
                  get(said) if isinstance(said, ray.ObjectRef) else said)  # fmt: skip
    patch.setattr(ray, "get_runtime_context", lambda: SimpleNamespace(get_actor_id=lambda: None))
    patch.setattr(worker_module, "prepare_worker", lambda: "cpu")
    patch.setattr(StoreScan, "blocks", read_here)
    patch.setattr(LiveScan, "_computed", computed_here)
    service = ScanService(ScanSettings(memory, 1.0, readers, readers, 1, patience))
    service.expect(readers, each)
    return Here(service, apart)


def counts(service):
    """The service's counts."""
    return service.service.counts()
