"""Speed of reading a store, compared with np.memmap, pyarrow lists and ray.data on the same rows.

    python scripts/bench_store.py [--gb 1] [--d-in 768] [--trials 4]

All files are written once into a temporary folder and read from the page cache, which the first
pass of each way fills. GB/s counts the bytes of activations, read as batches of 1,024 rows in their
storage dtype, in the best of three passes.
"""

import argparse
import logging
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from raysae.console.quiet import quiet_environment

quiet_environment()

import numpy as np  # noqa: E402
import pyarrow as pa  # noqa: E402
import pyarrow.parquet as pq  # noqa: E402
import ray  # noqa: E402
import torch  # noqa: E402
from kill_storm import descendants  # noqa: E402

import raysae  # noqa: E402
from raysae.activations import Site, Store  # noqa: E402
from raysae.activations.streaming import StreamedRows  # noqa: E402
from raysae.activations.writer import write_store  # noqa: E402
from raysae.cluster.sharing import SharedSite, share_site  # noqa: E402
from raysae.training import gathering  # noqa: E402
from raysae.training.kernels import kernels, kernels_if_built  # noqa: E402
from raysae.training.rows import IndexedRows  # noqa: E402

BATCH = 1024
PASSES = 3
SITE = Site(0, "all")


@dataclass
class Data:
    """The same rows in every format: ``rows`` rows of width ``d_in`` in float16."""

    folder: Path
    rows: int
    d_in: int
    store: Store

    @property
    def bytes(self) -> int:
        """Bytes of the activations."""
        return self.rows * self.d_in * 2


def write(folder: Path, gb: float, d_in: int) -> Data:
    """Write one site of float16 rows as a store, a flat file and Parquet with a list column."""
    rows = int(gb * 1e9 / (2 * d_in))
    parts = (part_of(start, rows, d_in) for start in range(0, rows, 65_536))
    write_store(
        folder / "store", {SITE: parts}, provenance="synthetic", source={}, dtype="float16",
        split={"validation": 0.0, "test": 0.0},
    )  # fmt: skip
    store = raysae.open_store(folder / "store")
    flat = np.memmap(folder / "flat", np.float16, "w+", shape=(rows, d_in))
    start = 0
    for block in store.blocks(SITE, "train"):
        flat[start : start + len(block)] = block.numpy()
        start += len(block)
    flat.flush()
    write_lists(folder / "lists.parquet", flat)
    return Data(folder, rows, d_in, store)


def part_of(start: int, rows: int, d_in: int) -> torch.Tensor:
    """At most 65,536 random rows ``[rows, d_in]`` in float16, from row ``start`` on."""
    generator = torch.Generator().manual_seed(start)
    return torch.randn(min(65_536, rows - start), d_in, generator=generator).half()


def write_lists(path: Path, flat: np.memmap) -> None:
    """Write the rows as Parquet with a column of fixed-size lists."""
    d_in = flat.shape[1]
    schema = pa.schema([("activation", pa.list_(pa.float16(), d_in))])
    with pq.ParquetWriter(path, schema, compression="none", use_dictionary=False) as writer:
        for start in range(0, len(flat), 21_845):
            values = pa.array(np.array(flat[start : start + 21_845]).reshape(-1))
            lists = pa.FixedSizeListArray.from_arrays(values, d_in)
            writer.write_table(pa.table([lists], schema=schema))


def memmap_sequential(data: Data) -> Iterator[Any]:
    """A plain loop over a memory-mapped file, in file order; each batch is a new array."""
    flat = np.memmap(data.folder / "flat", np.float16, "r", shape=(data.rows, data.d_in))
    for start in range(0, data.rows, BATCH):
        yield np.array(flat[start : start + BATCH])


def memmap_into_buffer(data: Data) -> Iterator[Any]:
    """The same with one small buffer that fits in the processor's cache: the fastest way."""
    flat = np.memmap(data.folder / "flat", np.float16, "r", shape=(data.rows, data.d_in))
    buffer = np.empty((BATCH, data.d_in), np.float16)
    for start in range(0, data.rows, BATCH):
        part = flat[start : start + BATCH]
        np.copyto(buffer[: len(part)], part)
        yield buffer[: len(part)]


def list_column(data: Data) -> Iterator[Any]:
    """Batches from Parquet's list column with pyarrow, in file order."""
    for block in pq.ParquetFile(data.folder / "lists.parquet").iter_batches(21_845):
        values = block.column(0).flatten().to_numpy().reshape(-1, data.d_in)
        for start in range(0, len(values), BATCH):
            yield values[start : start + BATCH]


def ray_data(data: Data) -> Iterator[Any]:
    """Batches from Parquet's list column with Ray Data."""
    dataset = ray.data.read_parquet(str(data.folder / "lists.parquet"))
    for batch in dataset.iter_torch_batches(batch_size=BATCH, dtypes=torch.float16):
        yield batch["activation"]


def shuffled(source: IndexedRows) -> Callable[[Data], Iterable[Any]]:
    """A way that reads one shuffled epoch of ``source``."""
    return lambda _data: source.epoch(0, 0, BATCH)


def gb_per_second(data: Data, read: Callable[[Data], Iterable[Any]], passes: int = PASSES) -> float:
    """The rate of the best pass. Raises RuntimeError when a pass does not read every row."""
    best = 0.0
    for _ in range(passes):
        started, rows = time.perf_counter(), 0
        for batch in read(data):
            rows += len(batch)
        best = max(best, data.bytes / (time.perf_counter() - started) / 1e9)
        if rows != data.rows:
            raise RuntimeError(f"{read}: delivered {rows} of {data.rows} rows")
    return best


def rates(data: Data) -> None:
    """Print each way's rate, and its ratio to that of the sequential memmap."""
    shared = share_site(data.store, SITE).rows("train")
    ways: list[tuple[str, Callable[[Data], Iterable[Any]], int]] = [
        ("np.memmap, sequential, a new array a batch", memmap_sequential, PASSES),
        ("np.memmap, sequential, into one buffer", memmap_into_buffer, PASSES),
        ("raysae shared, shuffled", shuffled(shared), PASSES),
        ("raysae streaming, shuffled", shuffled(StreamedRows(data.store, SITE, "train")), PASSES),
        ("pyarrow, FixedSizeList column, sequential", list_column, 2),
        ("ray.data.read_parquet().iter_torch_batches()", ray_data, 1),
    ]
    print(
        f"{data.rows:,} rows of {data.d_in} float16, {data.bytes / 1e9:.2f} GB, batches of {BATCH}"
    )
    print(f"{'way':46} {'GB/s':>6}  of memmap")
    base = None
    for name, read, passes in ways:
        rate = gb_per_second(data, read, passes)
        base = base or rate
        print(f"{name:46} {rate:6.2f}  {rate / base:8.2f}", flush=True)


def blocks(data: Data) -> None:
    """Print the rate of rows shared in eight blocks and in one, with one shuffle window over all."""
    built = kernels()  # as a training of TopK has built them
    shared = {
        count: share_site(data.store, SITE, -(-data.rows // count) * data.d_in * 2).rows("train")
        for count in (1, 8)
    }
    ways = [(1, None, "1 block"), (8, built, "8 blocks, kernels"), (8, None, "8 blocks, torch")]
    best = dict.fromkeys((name for _, _, name in ways), 0.0)
    for _ in range(PASSES):  # in turns, as the machine is not equally busy all the time
        for count, used, name in ways:
            gathering.kernels_if_built = lambda used=used: used
            read = partial(shared[count].epoch, 0, 0, BATCH, data.rows)
            best[name] = max(best[name], gb_per_second(data, lambda _, read=read: read(), 1))
    gathering.kernels_if_built = kernels_if_built
    print(f"\n{'shared, one shuffle window over all rows':46} {'GB/s':>6}  of 1 block")
    for name, rate in best.items():
        print(f"{name:46} {rate:6.2f}  {rate / best['1 block']:8.2f}", flush=True)


@ray.remote(num_cpus=0)
class Trial:
    """An actor that reads as a trial does: one epoch over the shared rows."""

    def epoch(self, site: SharedSite) -> tuple[int, int]:
        """Rows read, and the growth of the process's private memory in bytes."""
        before = own_bytes()
        rows = site.rows("train")
        return sum(len(batch) for batch in rows.epoch(0, 0, BATCH)), own_bytes() - before


def own_bytes() -> int:
    """Private memory of this process in bytes, without memory that it shares with others."""
    with open("/proc/self/smaps_rollup") as file:
        return sum(int(line.split()[1]) * 1024 for line in file if line.startswith("Private"))


def workers_cost() -> dict[int, tuple[float, float]]:
    """Bytes read from files or page cache, and CPU seconds, of each of this process's Ray workers, by
    process id."""
    ticks, found = os.sysconf("SC_CLK_TCK"), {}
    for folder in (Path(f"/proc/{pid}") for pid in descendants(os.getpid())):
        try:
            if not (folder / "cmdline").read_bytes().startswith(b"ray::"):
                continue
            stat = (folder / "stat").read_text().rsplit(")", 1)[1].split()
            lines = (folder / "io").read_text().splitlines()
            read = int(next(line for line in lines if line.startswith("rchar")).split()[1])
            found[int(folder.name)] = read, (int(stat[11]) + int(stat[12])) / ticks
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
    return found


def spent(before: dict[int, tuple[float, float]]) -> tuple[float, float]:
    """Bytes read and CPU seconds of all workers since ``before``."""
    pairs = [(now, before.get(pid, (0.0, 0.0))) for pid, now in workers_cost().items()]
    return sum(a[0] - b[0] for a, b in pairs), sum(a[1] - b[1] for a, b in pairs)


def copies(data: Data, trials: int) -> None:
    """Print memory, bytes read and CPU of ``trials`` trials on one shared copy, and of one."""
    print(f"\n{'trials':>6} {'object store GB':>16} {'private MB a trial':>19} {'read GB':>8} "
          f"{'decode CPU s':>13}")  # fmt: skip
    costs = [cost_of(data, count) for count in (1, trials)]
    read, cpu = (several / one for one, several in zip(*costs, strict=True))
    print(f"{trials} trials against one: {read:.2f} of the bytes read, {cpu:.2f} of the decode CPU")


def cost_of(data: Data, trials: int) -> tuple[float, float]:
    """Bytes read, and CPU seconds of reading and decoding, by ``trials`` trials at once."""
    actors = [Trial.remote() for _ in range(trials)]
    ray.get([actor.__ray_ready__.remote() for actor in actors])
    before, used = workers_cost(), object_store_bytes()
    site = share_site(data.store, SITE)
    _, decode = spent(before)
    found = ray.get([actor.epoch.remote(site) for actor in actors])
    read, _ = spent(before)
    assert all(rows == data.rows for rows, _ in found)
    private = max(private for _, private in found)
    grown = object_store_bytes() - used
    print(f"{trials:6} {grown / 1e9:16.2f} {private / 1e6:19.1f} {read / 1e9:8.2f} {decode:13.2f}",
          flush=True)  # fmt: skip
    for actor in actors:
        ray.kill(actor)
    del site
    time.sleep(2)
    return read, decode


def object_store_bytes() -> float:
    """Bytes in use in the object store."""
    there = ray.cluster_resources()["object_store_memory"]
    return there - ray.available_resources().get("object_store_memory", 0.0)


def main() -> int:
    """Print all tables; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gb", type=float, default=1.0, help="size of the rows (1)")
    parser.add_argument("--d-in", type=int, default=768)
    parser.add_argument("--trials", type=int, default=4)
    parser.add_argument("--folder", type=Path, help="where to write; a temporary folder otherwise")
    args = parser.parse_args()
    torch.set_num_threads(1)
    folder = Path(tempfile.mkdtemp(dir=args.folder))
    ray.init(
        include_dashboard=False, log_to_driver=False, logging_level="ERROR",
        object_store_memory=int(args.gb * 3e9) + 500_000_000,
    )  # fmt: skip
    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    try:
        data = write(folder, args.gb, args.d_in)
        rates(data)
        blocks(data)
        copies(data, args.trials)
    finally:
        ray.shutdown()
        shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
