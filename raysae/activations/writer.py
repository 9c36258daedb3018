"""Writing shards, and the statistics that go with them. Reading needs nothing from here.

Shapes: N rows, D d_in.
"""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor

from raysae.activations.manifest import (
    FORMAT_VERSION,
    Manifest,
    ShardEntry,
    SiteEntry,
    SplitRows,
)
from raysae.activations.schema import Dtype, shard_schema, to_arrow, torch_dtype
from raysae.activations.splits import SPLITS, split_of
from raysae.errors import UserError
from raysae.files import replacing
from raysae.sites import Site

ROW_GROUP_BYTES = 32 * 2**20


@dataclass(frozen=True)
class SiteRows:
    """The rows of one shard: activations ``[N, D]`` (any float dtype) and where each came from."""

    activation_ND: Tensor
    sequence: NDArray[np.int64]
    token_index: NDArray[np.int32]
    token_id: NDArray[np.int32]


@dataclass(frozen=True)
class WrittenShard:
    """A shard's manifest entry with the sums that the site's statistics are made of."""

    entry: ShardEntry
    sum_D: NDArray[np.float64]
    square_sum: float


def write_shard(
    store: Path, site: Site, number: int, rows: SiteRows, dtype: str, split: Mapping[str, float]
) -> WrittenShard:
    """Write one shard, its rows ordered train, validation, test, and measure it.

    Raises UserError when a value is not finite or ``dtype`` cannot hold it.
    """
    stored_ND = _to_storage(rows.activation_ND, dtype, site)
    code = split_of(rows.sequence, split["validation"], split["test"])
    order = np.argsort(code, kind="stable")
    counts = np.bincount(code, minlength=len(SPLITS)).tolist()
    table = pa.table(
        [
            to_arrow(stored_ND[torch.from_numpy(order)]),
            pa.array(rows.sequence[order]),
            pa.array(rows.token_index[order]),
            pa.array(rows.token_id[order]),
        ],
        schema=shard_schema(dtype, stored_ND.shape[1]),
    )
    name = f"{site.folder}/part-{number:05d}.parquet"
    with replacing(store / name) as temporary:
        _write_table(table, counts, temporary)
        content = temporary.read_bytes()
    entry = ShardEntry(
        file=name,
        rows=SplitRows(**dict(zip(SPLITS, counts, strict=True))),
        bytes=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
    )
    exact_ND = stored_ND.double()
    return WrittenShard(entry, exact_ND.sum(dim=0).numpy(), float(exact_ND.square().sum()))


def site_entry(site: Site, shards: list[WrittenShard]) -> SiteEntry:
    """The manifest entry of a site from its shards, summed in the order given."""
    rows = {name: sum(getattr(s.entry.rows, name) for s in shards) for name in SPLITS}
    total = sum(rows.values())
    mean_D = sum(shard.sum_D for shard in shards) / max(total, 1)
    square = sum(shard.square_sum for shard in shards) / max(total, 1)
    return SiteEntry(
        layer=site.layer,
        position=site.position,
        rows=SplitRows(**rows),
        mean=np.asarray(mean_D).tolist(),
        mean_square_norm=square,
        total_variance=max(square - float(np.square(mean_D).sum()), 0.0),
        shards=[shard.entry for shard in shards],
    )


def write_store(
    store: Path,
    sites: Mapping[Site, Tensor],
    *,
    provenance: Literal["imported", "synthetic"],
    source: dict[str, Any],
    dtype: Dtype = "float32",
    split: Mapping[str, float],
    shards: int = 1,
) -> Manifest:
    """Write a store from rows ``[N, D]`` in memory, one sequence a row, one row order for all sites.

    Raises UserError when the folder holds a store already.
    """
    if (store / "manifest.json").exists():
        raise UserError(f"{store}: holds a store already; name another folder or remove it")
    entries = [
        site_entry(site, list(_write_parts(store, site, rows_ND, dtype, split, shards)))
        for site, rows_ND in sorted(sites.items())
    ]
    manifest = Manifest(
        format_version=FORMAT_VERSION, provenance=provenance, source=source, model=None,
        dataset=None, hookpoint="none", dtype=dtype, d_in=len(entries[0].mean),
        split=dict(split), sites=entries,
    )  # fmt: skip
    manifest.write(store)
    return manifest


def _write_parts(
    store: Path, site: Site, rows_ND: Tensor, dtype: str, split: Mapping[str, float], shards: int
) -> Iterable[WrittenShard]:
    for number, sequence in enumerate(np.array_split(np.arange(len(rows_ND)), shards)):
        zeros = np.zeros(len(sequence), dtype=np.int32)
        rows = SiteRows(rows_ND[torch.from_numpy(sequence)], sequence, zeros, zeros)
        yield write_shard(store, site, number, rows, dtype, split)


def _to_storage(activation_ND: Tensor, dtype: str, site: Site) -> Tensor:
    finite_N = activation_ND.isfinite().all(dim=1)
    if not bool(finite_N.all()):
        bad = (~finite_N).nonzero().squeeze(1)
        raise UserError(
            f"{site}: {len(bad)} of {len(finite_N)} rows hold NaN or infinite values (first: row "
            f"{int(bad[0])} of the shard); the model's own forward pass overflows there, "
            "so load it in a wider dtype"
        )
    largest = float(activation_ND.abs().max()) if activation_ND.numel() else 0.0
    limit = torch.finfo(torch_dtype(dtype)).max
    if largest > limit:
        raise UserError(
            f"{site}: an activation reaches {largest:.4g}, above {dtype}'s largest value "
            f"{limit:.4g}; set source.dtype=bfloat16 or source.dtype=float32"
        )
    return activation_ND.to(torch_dtype(dtype))


def _write_table(table: pa.Table, counts: list[int], path: Path) -> None:
    """Each split in row groups of its own, so that a reader can take a split by row group."""
    width = table.schema.field("activation").type.byte_width
    group_rows = max(ROW_GROUP_BYTES // width, 1)
    with pq.ParquetWriter(
        path, table.schema, compression="none", use_dictionary=False, write_statistics=False
    ) as writer:
        start = 0
        for count in counts:
            if count:
                writer.write_table(table.slice(start, count), row_group_size=group_rows)
            start += count
