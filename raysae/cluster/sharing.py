"""One copy of a site's rows in memory for all trials of a node: large sites are read by Ray Data.

The rows are in Ray's object store; every trial maps the same memory, without a copy.
"""

from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from torch import Tensor

from raysae.activations.schema import to_arrow, to_torch
from raysae.activations.store import TRAINING_SPLITS, Store, open_store
from raysae.sites import Site
from raysae.training.rows import Rows

READ_HERE_BYTES = 64 * 2**20
"""The driver reads a site of up to so many bytes itself: starting workers takes seconds."""


@dataclass(frozen=True)
class SharedSite:
    """References to one site's rows in Ray's object store, small enough to send to any worker."""

    dtype: str
    d_in: int
    blocks: dict[str, list[Any]]
    """For each split, references to Arrow tables, with the rows in the store's order."""

    def tensors(self, split: str) -> list[Tensor]:
        """The split's blocks as ``[rows, d_in]`` views of the object store's memory."""
        import ray

        tables = ray.get(self.blocks[split])
        return [rows for table in tables for rows in to_torch(table["activation"], self.dtype)]

    def rows(self, split: str) -> Rows:
        """The split's rows, ``[rows, d_in]``, as views of the object store's memory."""
        return Rows(self.tensors(split))


def share_site(store: Store, site: Site) -> SharedSite:
    """Read ``site`` once into the object store of the connected Ray.

    The caller must have checked the checksums. Raises UserError when a shard is not readable.
    """
    blocks = {split: _share_split(store, site, split) for split in TRAINING_SPLITS}
    return SharedSite(store.manifest.dtype, store.d_in, blocks)


def _share_split(store: Store, site: Site, split: str) -> list[Any]:
    import ray

    if not getattr(store.entry(site).rows, split):
        return []
    if store.training_bytes(site) <= READ_HERE_BYTES:
        return [ray.put(_table(store, site, split))]
    task = {"store": str(store.uri or store.path), "layer": site.layer, "position": site.position}
    dataset = ray.data.from_items([{**task, "split": split}]).map_batches(
        _read, batch_size=None, batch_format="pyarrow"
    )
    # one block: a batch then takes one call, which is twice as fast as with several blocks
    dataset.context.target_max_block_size = None
    return dataset.materialize().to_arrow_refs()


def _read(task: pa.Table) -> pa.Table:
    (row,) = task.to_pylist()
    store, site = open_store(row["store"]).trust(), Site(row["layer"], row["position"])
    return _table(store, site, row["split"])


def _table(store: Store, site: Site, split: str) -> pa.Table:
    rows_ND = store.rows(store.split_segments(site, split))
    return pa.table([to_arrow(rows_ND)], names=["activation"])
