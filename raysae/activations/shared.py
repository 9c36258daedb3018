"""One copy of a site's rows for all trials of a node: materialised once through Ray Data.

The blocks lie in Ray's object store; every trial maps the same memory, without a copy.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from torch import Tensor

from raysae.activations.reader import Store, open_store
from raysae.activations.schema import to_torch
from raysae.sites import Site

SHARED_SPLITS = ("train", "validation")


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
    """Read ``site`` once, spread over the connected Ray, into shared blocks."""
    import ray

    tasks = [
        {
            "store": str(store.path),
            "layer": site.layer,
            "position": site.position,
            "shard": n,
            "split": split,
        }
        for split in SHARED_SPLITS
        for n, shard in enumerate(store.entry(site).shards)
        if getattr(shard.rows, split)
    ]
    dataset = ray.data.from_items(tasks, override_num_blocks=len(tasks)).map_batches(
        _read, batch_size=None, batch_format="pyarrow"
    )
    references = dataset.materialize().to_arrow_refs()
    splits = [task["split"] for task in tasks]
    assert len(references) == len(splits), "Ray Data merged or split the blocks"
    blocks = {
        split: [r for r, s in zip(references, splits, strict=True) if s == split]
        for split in SHARED_SPLITS
    }
    return SharedSite(store.manifest.dtype, store.d_in, blocks)


def _read(task: pa.Table) -> pa.Table:
    (row,) = task.to_pylist()
    store = open_store(Path(row["store"]))
    shard = store.entry(Site(row["layer"], row["position"])).shards[row["shard"]]
    return store.read(shard, row["split"], ["activation"]).combine_chunks()
