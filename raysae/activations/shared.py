"""One copy of a site's rows for all trials of a node: materialised once through Ray Data.

The blocks lie in Ray's object store; every trial maps the same memory, without a copy.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from torch import Tensor

from raysae.activations.reader import Store, open_store
from raysae.activations.schema import ITEM_BYTES, to_torch
from raysae.errors import UserError
from raysae.sites import Site

SHARED_SPLITS = ("train", "validation")
OBJECT_STORE_SHARE = 0.8
"""How full the object store may get: Ray spills to disk beyond."""


@dataclass(frozen=True)
class SharedSite:
    """References to the blocks of one site, small enough to hand to any worker."""

    dtype: str
    d_in: int
    blocks: dict[str, list[Any]]
    """For each split, object references of Arrow tables in shard order."""

    def tensors(self, split: str) -> list[Tensor]:
        """The split's blocks as ``[rows, d_in]`` views of the object store's memory."""
        import ray

        tables = ray.get(self.blocks[split])
        return [rows for table in tables for rows in to_torch(table["activation"], self.dtype)]


def share_site(store: Store, site: Site) -> SharedSite:
    """Read ``site`` once, spread over the connected Ray, into shared blocks.

    Raises UserError when Ray's object store cannot hold it.
    """
    _refuse_too_large(store, site)
    blocks = {split: _share_split(store, site, split) for split in SHARED_SPLITS}
    return SharedSite(store.manifest.dtype, store.d_in, blocks)


def _share_split(store: Store, site: Site, split: str) -> list[Any]:
    import ray

    tasks = [
        {"store": str(store.path), "layer": site.layer, "position": site.position,
         "shard": number, "split": split}
        for number, shard in enumerate(store.entry(site).shards)
        if getattr(shard.rows, split)
    ]  # fmt: skip
    dataset = ray.data.from_items(tasks, override_num_blocks=len(tasks)).map_batches(
        _read, batch_size=None, batch_format="pyarrow"
    )
    dataset.context.execution_options.preserve_order = True  # rows are numbered in shard order
    return dataset.materialize().to_arrow_refs()


def _refuse_too_large(store: Store, site: Site) -> None:
    import ray

    rows = store.entry(site).rows
    needed = (rows.train + rows.validation) * store.d_in * ITEM_BYTES[store.manifest.dtype]
    there = ray.cluster_resources().get("object_store_memory", 0.0)
    if needed > OBJECT_STORE_SHARE * there:
        raise UserError(
            f"{store.path}: {site} takes {needed / 1e9:.2f} GB in memory; Ray's object store has "
            f"{there / 1e9:.2f} GB and may fill to {OBJECT_STORE_SHARE:.0%}; extract fewer sequences "
            "(source.sequences), or use a machine with more memory"
        )


def _read(task: pa.Table) -> pa.Table:
    (row,) = task.to_pylist()
    store = open_store(Path(row["store"]))
    shard = store.entry(Site(row["layer"], row["position"])).shards[row["shard"]]
    return store.read(shard, row["split"], ["activation"]).combine_chunks()
