"""A scan of live data: Ray Data carries rows from the workers that compute them, shard by shard."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from raysae.activations.schema import ITEM_BYTES, as_values, torch_dtype
from raysae.activations.store import Store, open_store
from raysae.cluster.placement import Placement
from raysae.cluster.scan.store_scan import LEAST_STORE, opened
from raysae.errors import UserError
from raysae.extraction.keeping import finish_kept
from raysae.extraction.plan import ExtractionPlan
from raysae.remembered import forget_all
from raysae.sites import Site

if TYPE_CHECKING:
    from ray.data import Dataset

    from raysae.extraction.live import HeldTransformer, Load

BLOCKS_UNDERWAY = 4
"""Blocks that Ray Data may hold before the service takes them."""


@dataclass(frozen=True)
class LiveData:
    """How live rows are computed: by which workers, at which sites, and whether they are kept."""

    plan: ExtractionPlan
    sites: tuple[Site, ...]
    """The sites of one pass."""
    keep: bool
    placement: Placement
    """The workers that compute."""
    epochs: int
    """Epochs that every training has, at least: the workers compute them one after the other."""

    @property
    def place(self) -> str:
        """The live store's folder."""
        return str(self.plan.folder)

    def scan(self, epoch: int, service: Any) -> "LiveScan":
        """The scan that ``epoch`` is read from."""
        if self.is_chained(epoch):
            return LiveScan(self, 0, self.chained, service)
        return LiveScan(self, epoch, 1, service)

    @property
    def chained(self) -> int:
        """Epochs from the first on that are one scan: all, unless they are kept, and then read."""
        return 1 if self.keep else self.epochs

    def is_chained(self, epoch: int) -> bool:
        """Whether an epoch is in one scan with others."""
        return self.chained > 1 and 0 <= epoch < self.chained


@dataclass(frozen=True)
class LiveScan:
    """Passes of the model over the training sequences; a piece is a shard's rows at all its sites.

    Rows that are not kept are computed for all epochs by the same workers, one pass after the other.
    """

    data: LiveData
    first: int
    """The number of the first pass."""
    passes: int
    service: Any
    """The scan service, which counts the tokens that were read."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LiveScan) and (
            (self.data, self.first, self.passes) == (other.data, other.first, other.passes)
        )

    def __hash__(self) -> int:
        return hash((self.data.sites, self.first))

    def pieces(self) -> Iterator[int]:
        """The numbers of the shards, in order, once for each pass."""
        live = opened(self.data.place).live
        assert live is not None
        return chain.from_iterable(range(live.shards) for _ in range(self.passes))

    def blocks(self, first: int, cpus: float) -> Iterator[tuple[Any, int]]:
        """References to the blocks from piece ``first`` on, each with its bytes.

        Each is an Arrow table of one row, with a column of bytes for each site. Raises UserError when
        activations cannot be used. Before the last one, the training rows are listed in the store's
        manifest when all were kept: whoever has that block then reads the next epoch from disk.
        """
        left = sum(1 for _ in self.pieces()) - first
        for block in self._computed(first):
            left -= 1
            if not left and self.data.keep:
                finish_kept(open_store(self.data.place))
                forget_all()
            yield block

    def _computed(self, first: int) -> Iterator[tuple[Any, int]]:
        for bundle in self._dataset(first).iter_internal_ref_bundles():
            sizes = [metadata.size_bytes or 0 for metadata in bundle.metadata]
            yield from zip(bundle.block_refs, sizes, strict=True)

    @property
    def _by(self) -> dict[str, Any]:
        """What computes. On GPUs an actor, which gives the GPU's memory back when the scan has ended; on
        CPUs tasks, whose processes are there for the next scan, with the transformer loaded."""
        if self.data.placement.gpus:
            return {"fn": Forward, "fn_constructor_args": (self,)}
        from raysae.extraction.live import READS_TEXTS

        return {
            "fn": forward, "fn_kwargs": {"scan": self}, "runtime_env": {"env_vars": READS_TEXTS}
        }  # fmt: skip

    def _dataset(self, first: int) -> "Dataset":
        import ray
        from ray.data import ExecutionResources

        shards = [{"shard": number} for number in self.pieces()][first:]
        placement = self.data.placement
        dataset = ray.data.from_items(shards, override_num_blocks=len(shards)).map_batches(
            **self._by, batch_size=None, batch_format="pyarrow", num_cpus=placement.cpus,
            num_gpus=placement.gpus or None, concurrency=min(placement.workers, len(shards)),
        )  # fmt: skip
        context = dataset.context
        context.target_max_block_size = None
        context.execution_options.preserve_order = True
        largest = largest_piece(opened(self.data.place), self.data.sites)
        context.execution_options.resource_limits = ExecutionResources.for_limits(
            object_store_memory=max(LEAST_STORE, BLOCKS_UNDERWAY * largest)
        )
        return dataset


class Forward:
    """Computes shards in the process that made it: it holds the transformer, as ``load`` gives it."""

    def __init__(self, scan: LiveScan, load: "Load | None" = None):
        from raysae.cluster.worker import prepare_worker
        from raysae.extraction.live import LiveExtractor
        from raysae.extraction.shards import load_capturer

        self.scan, self._batches = scan, 0
        with _told(scan):
            device = prepare_worker()
            data = scan.data
            self.extractor = LiveExtractor(
                data.plan, data.sites, device, data.keep, load or load_capturer
            )

    def __call__(self, table: pa.Table) -> pa.Table:
        (shard,) = table["shard"].to_pylist()
        self._batches = 0
        with _told(self.scan):
            rows = self.extractor.rows(shard, self._count)
        if self._batches:  # else they were read, and not computed
            live = self.extractor.store.live
            assert live is not None
            self.scan.service.forwarded.remote(live.entry.shards[shard].tokens)
        return pa.table({site.folder: _as_bytes(rows[site]) for site in self.scan.data.sites})

    def _count(self) -> None:
        self._batches += 1


def forward(table: pa.Table, scan: LiveScan) -> pa.Table:
    """Compute a shard in a process that goes on to the next scan, with the transformer that it holds."""
    return _forward_of(scan, scan.service)(table)


@lru_cache(maxsize=1)
def _forward_of(scan: LiveScan, service: Any) -> Forward:
    return Forward(scan, _held_transformer())


@cache
def _held_transformer() -> "HeldTransformer":
    from raysae.extraction.live import HeldTransformer

    return HeldTransformer()


@contextmanager
def _told(scan: LiveScan) -> Iterator[None]:
    """Tell the service what a worker refuses, as Ray Data does not; Ray's logs get no secrets."""
    import ray

    from raysae.redaction import redacted_errors

    try:
        with redacted_errors():
            yield
    except UserError as error:
        ray.get(scan.service.refuse.remote(scan, str(error)))
        raise


def _as_bytes(rows_ND: Tensor) -> pa.Array:
    """The rows as one value of bytes, not copied."""
    content = (
        rows_ND.contiguous().view(torch.uint8).numpy() if len(rows_ND) else np.zeros(0, np.uint8)
    )
    offsets = np.array([0, content.size], dtype=np.int64)
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(content)]
    return pa.Array.from_buffers(pa.large_binary(), 1, buffers)


def rows_in(table: pa.Table, site: Site, store: Store) -> Tensor:
    """The rows ``[rows, d_in]`` of a site in a block, as a view of its memory."""
    array = table[site.folder].combine_chunks()
    _, offsets, content = array.buffers()
    first, last = np.frombuffer(offsets, np.int64)[array.offset : array.offset + 2].tolist()
    dtype = store.manifest.dtype
    if first == last:
        return torch.empty(0, store.d_in, dtype=torch_dtype(dtype))
    return as_values(content.slice(first, last - first), dtype).view(-1, store.d_in)


def largest_piece(store: Store, sites: tuple[Site, ...]) -> int:
    """Bytes of the largest piece at ``sites``."""
    assert store.live is not None
    live, item = store.live, ITEM_BYTES[store.manifest.dtype]
    rows = (sum(live.rows(site, shard) for site in sites) for shard in range(live.shards))
    return max(rows, default=0) * store.d_in * item
