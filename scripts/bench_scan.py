"""Speed of a scan that several readers share, against readers that read for themselves.

    python scripts/bench_scan.py [--gb 1] [--readers 4]         # a local store, from the page cache
    python scripts/bench_scan.py --s3 [--gb 0.3] [--rate 50e6]  # one on a slow S3 server (scripts/s3.sh)
    python scripts/bench_scan.py --s3 --files --gb 2 --rate 200e6  # the same from scripts/file_server.py

Readers are actors that take batches of 1,024 rows in their storage dtype, shuffled in windows of
``--shuffle-rows``, and do nothing with them. The ways take turns of two passes, and the best pass of all
``--turns`` counts, the start of its scan included. Ray's workers run at niceness 0, as the readers do.

Bytes are counted where they are fetched: of a local store those that Ray's processes get from read calls
(``rchar`` of /proc/PID/io), of one on S3 those that the server sends. The exit code is 1 when a demand
fails:

- local: one reader of a scan at a quarter of our own reader's rate and six times Ray Data's plain way;
  all readers together at half of our own reader's; their bytes at most 1.05 of a pass.
- S3: the time of all readers of one scan at most 1.2 of that of one.
"""

import argparse
import logging
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("RAY_worker_niceness", "0")

import ray
import s3_sweep
from bench_store import BATCH, Data, ray_data, spent, workers_cost, write
from file_server import FileServer, file_server
from s3_server import S3Server, missing, s3_server

from raysae.activations import Site, Store, open_store
from raysae.cluster.reading import OpenSite, StreamedSite
from raysae.cluster.scan.opening import ScanPlan, scanned_sites, serving
from raysae.cluster.worker import prepare_worker
from raysae.training.rows import SHUFFLE_ROWS

OBJECT_STORE_SPARE = 1_000_000_000
"""Bytes of the object store beside what a scan may hold: blocks under way, and Ray Data's plain way."""


@dataclass
class Way:
    """One way of reading, and the best of its passes."""

    name: str
    readers: int
    read: Callable[[int], None]
    """Reads pass number so and so, by all readers at once."""
    seconds: float = float("inf")
    fetched: float = float("inf")
    """Bytes fetched from storage."""

    def take(self, turn: int, count: Callable[[], Callable[[], float]]) -> None:
        """Read two passes after each other, as the first may find Ray's workers gone; ``count()`` begins
        to count bytes and gives what tells how many came."""
        for number in (2 * turn, 2 * turn + 1):
            self._pass(number, count)

    def _pass(self, number: int, count: Callable[[], Callable[[], float]]) -> None:
        counted, began = count(), time.perf_counter()
        self.read(number)
        self.seconds = min(self.seconds, time.perf_counter() - began)
        self.fetched = min(self.fetched, counted())
        print(
            f"pass {number}: {self.name}: {self.seconds:.2f} s at best", file=sys.stderr, flush=True
        )


@ray.remote(num_cpus=0)
class Reader:
    """An actor that reads as a trial does."""

    def __init__(self) -> None:
        prepare_worker()

    def epoch(self, site: OpenSite, number: int, shuffle_rows: int) -> int:
        """Read an epoch; the rows that came."""
        return sum(map(len, site.rows("train").epoch(0, number, BATCH, shuffle_rows)))


@dataclass(frozen=True)
class Readers:
    """Actors, and the store that they read."""

    store: Store
    site: Site
    actors: list[Any]
    shuffle_rows: int

    def read(self, opened: OpenSite, count: int, number: int) -> None:
        """Let ``count`` readers read an epoch at the same time."""
        calls = [one.epoch.remote(opened, number, self.shuffle_rows) for one in self.actors[:count]]
        if set(ray.get(calls)) != {self.store.entry(self.site).rows.train}:
            raise RuntimeError("a reader did not get every row once")

    @contextmanager
    def ways(self, memory: int) -> Iterator[list[Way]]:
        """Reading for themselves and by a scan that holds ``memory`` bytes: one reader, and all."""
        several, plan = len(self.actors), ScanPlan((), memory)
        alone = StreamedSite.of(self.store, self.site)
        with serving(memory, 1, 1, None) as one, serving(memory, several, 1, None) as many:
            scans = {
                count: scanned_sites(self.store, [self.site], plan, service)[self.site]
                for count, service in ((1, one), (several, many))
            }
            yield [
                Way(f"{name}, {count} at once", count, partial(self.read, opened, count))
                for name, sites in (("each for itself", dict.fromkeys(scans, alone)), ("scan", scans))
                for count, opened in sites.items()
            ]  # fmt: skip


def fetched_here() -> Callable[[], float]:
    """Count the bytes that Ray's processes read from files or the page cache."""
    before = workers_cost()
    return lambda: spent(before)[0]


def fetched_from(server: S3Server) -> Callable[[], float]:
    """Count the bytes that the server sends."""
    server.reset()
    return lambda: float(server.bytes_of(s3_sweep.STORE))


def start_ray(memory: int, cpus: int) -> None:
    """Start Ray without its output, with room for two scans of ``memory`` bytes each."""
    ray.init(
        num_cpus=cpus, include_dashboard=False, log_to_driver=False, logging_level="ERROR",
        object_store_memory=2 * memory + OBJECT_STORE_SPARE,
    )  # fmt: skip
    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)


def readers_of(store: Store, args: argparse.Namespace) -> Readers:
    """Start the actors."""
    actors = [Reader.remote() for _ in range(args.readers)]
    ray.get([actor.__ray_ready__.remote() for actor in actors])
    return Readers(store, store.sites[0], actors, args.shuffle_rows)


def table(ways: list[Way], size: int) -> None:
    """Print the ways; ``size`` is that of a pass, in bytes. Ratios are to the first way."""
    print(
        f"{'way':32} {'seconds':>8} {'of first':>8} {'GB/s in all':>12} {'of first':>8} {'passes':>8}"
    )
    first = ways[0]
    for way in ways:
        rate = way.readers * size / way.seconds / 1e9
        print(
            f"{way.name:32} {way.seconds:8.2f} {way.seconds / first.seconds:8.2f} {rate:12.2f} "
            f"{way.readers * first.seconds / way.seconds:8.2f} {way.fetched / size:8.3f}",
            flush=True,
        )  # fmt: skip


def judged(demands: dict[str, tuple[float, float]]) -> int:
    """Print each demand, met where its figure is at least what is asked; the exit code."""
    for name, (found, asked) in demands.items():
        print(f"{'met' if found >= asked else 'NOT MET':8} {name}: {found:.2f}, asked {asked:g}")
    return int(any(found < asked for found, asked in demands.values()))


def local(folder: Path, args: argparse.Namespace) -> int:
    """Measure a local store; returns the exit code."""
    start_ray(args.memory, args.cpus)
    data = write(folder, args.gb, args.d_in)
    plain = Way("Ray Data's plain way, 1", 1, lambda _number: drain(data))
    with readers_of(data.store, args).ways(args.memory) as ways:
        for turn in range(args.turns):
            for way in (*ways, plain):
                way.take(turn, fetched_here)
    own, _, one, many = ways
    print(f"{data.rows:,} rows of {args.d_in} float16, {data.bytes / 1e9:.2f} GB")
    table([*ways, plain], data.bytes)
    return judged({
        "one reader of a scan, of our own reader's rate": (own.seconds / one.seconds, 0.25),
        "one reader of a scan, times Ray Data's plain way": (plain.seconds / one.seconds, 6.0),
        "all readers of a scan, of our own reader's rate":
            (many.readers * own.seconds / many.seconds, 0.5),
        "a pass, of the bytes fetched for all readers": (data.bytes / many.fetched, 1 / 1.05),
    })  # fmt: skip


def drain(data: Data) -> None:
    """Read every row in Ray Data's plain way."""
    if sum(map(len, ray_data(data))) != data.rows:
        raise RuntimeError("Ray Data's plain way did not give every row")


def remote(server: S3Server, folder: Path, args: argparse.Namespace) -> int:
    """Measure a store on the S3 server; returns the exit code."""
    written = s3_sweep.write(folder / s3_sweep.STORE, args.gb)
    if not isinstance(server, FileServer):
        s3_sweep.upload(server, folder / s3_sweep.STORE)
    size = written.entry(written.sites[0]).rows.train * written.row_bytes
    with server.named_in(os.environ):
        start_ray(args.memory, args.cpus)
        store = open_store(server.uri(s3_sweep.STORE))
        with readers_of(store, args).ways(args.memory) as ways:
            for turn in range(args.turns):
                for way in ways:
                    way.take(turn, partial(fetched_from, server))
    alone, _, one, many = ways
    print(f"{size / 1e9:.2f} GB, from a server held to {args.rate / 1e6:g} MB/s")
    table(ways, size)
    return judged({
        "time of one reader of a scan, of that of all": (one.seconds / many.seconds, 1 / 1.2),
        "time of one for itself, of that of all of a scan": (alone.seconds / many.seconds, 1 / 1.2),
    })  # fmt: skip


def main() -> int:
    """Print the table; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--s3", action="store_true", help="a store on a slow S3 server")
    parser.add_argument("--files", action="store_true", help="with --s3: scripts/file_server.py")
    parser.add_argument("--gb", type=float, default=1.0, help="size of the rows (1)")
    parser.add_argument("--d-in", type=int, default=768, help="of the local store")
    parser.add_argument("--readers", type=int, default=4)
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--memory", type=int, default=2**30, help="bytes a scan may hold (1 GiB)")
    parser.add_argument("--shuffle-rows", type=int, default=SHUFFLE_ROWS)
    parser.add_argument("--cpus", type=int, default=4, help="CPUs that Ray counts (4)")
    parser.add_argument("--rate", type=float, default=50e6, help="bytes a second of the server")
    args = parser.parse_args()
    if args.s3 and not args.files and (reason := missing()):
        print(f"error: {reason}", file=sys.stderr)
        return 2
    folder = Path(tempfile.mkdtemp())
    try:
        if not args.s3:
            return local(folder, args)
        serve = partial(file_server, folder) if args.files else s3_server
        with serve(args.rate) as server:
            return remote(server, folder, args)
    finally:
        ray.shutdown()
        shutil.rmtree(folder)


if __name__ == "__main__":
    sys.exit(main())
