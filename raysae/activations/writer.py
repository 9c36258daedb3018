"""Writing shards, and the statistics of their rows. Reading needs nothing from this file.

Shapes: N rows, D d_in.
"""

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

from raysae.activations.casting import to_storage
from raysae.activations.kept import NonFinite, kept_rows
from raysae.activations.manifest import (
    FORMAT_VERSION,
    MANIFEST_FILE,
    SEQUENCES_FOLDER,
    Manifest,
    SequencesEntry,
    ShardEntry,
    SiteEntry,
    SplitRows,
)
from raysae.activations.schema import (
    ITEM_BYTES,
    SEQUENCES_SCHEMA,
    Dtype,
    shard_schema,
    to_arrow,
)
from raysae.activations.splits import SPLITS, split_of
from raysae.errors import UserError
from raysae.sites import Site
from raysae.storage.files import replacing, sha256_of
from raysae.storage.remote import hand_over

ROW_GROUP_BYTES = 32 * 2**20
SHARD_BYTES = 256 * 2**20
"""Default limit of a shard's size, in bytes of activations."""
STATISTICS_ROWS = 512
"""Rows summed at a time. The number is fixed, so that the same rows give the same sums to the bit, and
small, so that the rows stay in the processor's cache."""
WHOLE_PAGE = 2**30
PART = "part"
"""How the names of shards begin."""


@dataclass(frozen=True)
class SiteRows:
    """Rows of a site: activations ``[N, D]`` (any float dtype), and each row's sequence id, token index
    and token id (``[N]`` each)."""

    activation_ND: Tensor
    sequence: NDArray[np.int64]
    token_index: NDArray[np.int32]
    token_id: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.activation_ND)

    def take(self, index: NDArray[Any]) -> "SiteRows":
        """The rows at ``index`` (row numbers, or a mask ``[N]``), in that order."""
        return SiteRows(
            self.activation_ND[torch.from_numpy(index)],
            self.sequence[index],
            self.token_index[index],
            self.token_id[index],
        )

    @classmethod
    def joined(cls, parts: "list[SiteRows]") -> "SiteRows":
        """The rows of all ``parts`` in one, in their order."""
        return cls(
            torch.cat([part.activation_ND for part in parts]),
            *(
                np.concatenate([getattr(part, name) for part in parts])
                for name in ("sequence", "token_index", "token_id")
            ),
        )


@dataclass(frozen=True)
class ShardFormat:
    """How every shard of a store is written."""

    dtype: Dtype
    split: Mapping[str, float]
    """Fractions of the sequences in ``validation`` and ``test``."""
    seed: int = 0
    """Decides the order of the rows within a shard."""
    non_finite: NonFinite = "refuse"
    max_norm_ratio: float | None = None
    """Rows with a norm over so many times the median norm of their shard are left out; None: none."""


@dataclass(frozen=True)
class WrittenShard:
    """A shard's manifest entry, and the sums from which the site's statistics are computed: of its rows
    ``[D]``, and of their squared norms."""

    entry: ShardEntry
    sum_D: NDArray[np.float64]
    square_sum: float
    dropped: int = 0
    too_large: int = 0


def shard_order(
    sequence: NDArray[np.int64], number: int, form: ShardFormat
) -> tuple[NDArray[np.int64], list[int]]:
    """The order of the rows ``[N]`` within the shard ``number``, and the number of rows of each split.

    ``sequence`` are the rows' sequence ids ``[N]``. The shuffle depends only on the seed, the shard's
    number and the number of rows, so the rows of all layers stay aligned.
    """
    code = split_of(sequence, form.split["validation"], form.split["test"])
    shuffled = np.random.default_rng([form.seed, number]).permutation(len(code))
    order = shuffled[np.argsort(code[shuffled], kind="stable")]
    return order, np.bincount(code, minlength=len(SPLITS)).tolist()


def write_shard(
    store: Path, site: Site, number: int, rows: SiteRows, form: ShardFormat, prefix: str = PART
) -> WrittenShard:
    """Write one shard: its rows ordered train, validation, test, and shuffled within each split.

    ``shard_order`` is the order, and ``prefix`` begins the file's name. Of a store at a URI (``store`` is
    its local copy) the file is uploaded and not kept here. Raises UserError as ``kept_rows`` and
    ``to_storage`` do.
    """
    kept = kept_rows(rows, site, form.non_finite, form.max_norm_ratio)
    usable = rows if kept.which_N is None else rows.take(kept.which_N)
    stored_ND = to_storage(usable.activation_ND, form.dtype, site)
    order, counts = shard_order(usable.sequence, number, form)
    stored_ND = stored_ND[torch.from_numpy(order)]
    table = pa.table(
        [
            to_arrow(stored_ND),
            pa.array(usable.sequence[order]),
            pa.array(usable.token_index[order]),
            pa.array(usable.token_id[order]),
        ],
        schema=shard_schema(form.dtype, stored_ND.shape[1]),
    )
    name = f"{site.folder}/{prefix}-{number:05d}.parquet"
    with replacing(store / name) as temporary:
        _write_table(table, counts, temporary)
        size, checksum = temporary.stat().st_size, sha256_of(temporary)
    hand_over(store / name, checksum)
    split_rows = SplitRows(**dict(zip(SPLITS, counts, strict=True)))
    entry = ShardEntry(file=name, rows=split_rows, bytes=size, sha256=checksum)
    return WrittenShard(entry, *row_sums(stored_ND), kept.dropped, kept.too_large)


def row_sums(rows_ND: Tensor) -> tuple[NDArray[np.float64], float]:
    """The sum of the rows ``[D]`` and the sum of their squared norms, in float64."""
    sum_D, square_sum = torch.zeros(rows_ND.shape[1], dtype=torch.float64), 0.0
    for part_ND in rows_ND.split(STATISTICS_ROWS):
        exact_ND = part_ND.double()
        sum_D += exact_ND.sum(dim=0)
        square_sum += float(torch.dot(exact_ND.view(-1), exact_ND.view(-1)))
    return sum_D.numpy(), square_sum


def site_entry(site: Site, shards: list[WrittenShard]) -> SiteEntry:
    """The manifest entry of a site, from its shards. The sums run in the order of ``shards``."""
    rows = {name: sum(getattr(s.entry.rows, name) for s in shards) for name in SPLITS}
    return SiteEntry(
        **site.columns,
        rows=SplitRows(**rows),
        **statistics_of(shards, sum(rows.values())),
        shards=[shard.entry for shard in shards],
    )


def statistics_of(shards: list[WrittenShard], rows: int) -> dict[str, Any]:
    """The statistics of a site's ``rows`` rows, from the sums of its shards: fields of ``SiteEntry``."""
    mean_D = sum(shard.sum_D for shard in shards) / max(rows, 1)
    square = sum(shard.square_sum for shard in shards) / max(rows, 1)
    too_large = sum(shard.too_large for shard in shards)
    return {
        "mean": np.asarray(mean_D).tolist(),
        "mean_square_norm": square,
        "total_variance": max(square - float(np.square(mean_D).sum()), 0.0),
        "dropped": sum(shard.dropped for shard in shards),
        **({"too_large": too_large} if too_large else {}),
    }


def write_sequences(store: Path, number: int, table: pa.Table) -> SequencesEntry:
    """Write one file of sequences, a table of ``SEQUENCES_SCHEMA``. Returns its manifest entry.

    Of a store at a URI it is uploaded and not kept here. Raises UserError when it cannot be.
    """
    name = f"{SEQUENCES_FOLDER}/part-{number:05d}.parquet"
    with replacing(store / name) as temporary:
        pq.write_table(table.cast(SEQUENCES_SCHEMA), temporary, compression="zstd")
        size, checksum = temporary.stat().st_size, sha256_of(temporary)
    hand_over(store / name, checksum)
    tokens = len(table["token_id"].combine_chunks().flatten())
    return SequencesEntry(
        file=name, sequences=len(table), tokens=tokens, bytes=size, sha256=checksum
    )


class SiteWriter:
    """Writes a site shard by shard from rows that arrive in parts. Holds little more than one shard in
    memory; ``shard_rows`` limits a shard's rows (default: as many as fit ``SHARD_BYTES``)."""

    def __init__(self, store: Path, site: Site, form: ShardFormat, shard_rows: int | None = None):
        self.store, self.site, self.form, self.shard_rows = store, site, form, shard_rows
        self._waiting: list[SiteRows] = []
        self._written: list[WrittenShard] = []

    def add(self, rows: SiteRows) -> None:
        """Add rows; full shards are written. Raises UserError as ``write_shard`` does."""
        self._waiting.append(rows)
        limit = self.shard_rows or self._fitting(rows.activation_ND.shape[1])
        while (waiting := sum(map(len, self._waiting))) >= limit:
            joined = SiteRows.joined(self._waiting)
            self._waiting = [joined.take(np.arange(limit, waiting))]
            self._write(joined.take(np.arange(limit)))

    def finish(self) -> SiteEntry:
        """Write the remaining rows. Returns the site's manifest entry. Raises UserError as
        ``write_shard`` does."""
        if sum(map(len, self._waiting)):
            self._write(SiteRows.joined(self._waiting))
        self._waiting = []
        return site_entry(self.site, self._written)

    def _fitting(self, d_in: int) -> int:
        return max(SHARD_BYTES // (d_in * ITEM_BYTES[self.form.dtype]), 1)

    def _write(self, rows: SiteRows) -> None:
        self._written.append(
            write_shard(self.store, self.site, len(self._written), rows, self.form)
        )


def write_store(
    store: Path,
    sites: Mapping[Site, Tensor | Iterable[Tensor]],
    *,
    provenance: Literal["imported", "synthetic"],
    source: dict[str, Any],
    dtype: Dtype = "float32",
    split: Mapping[str, float],
    shard_rows: int | None = None,
) -> Manifest:
    """Write a store from rows ``[N, D]`` of each site, in one tensor or in parts.

    Each row counts as a sequence of its own, and row i has the same sequence id at every site. Returns
    the manifest. Raises UserError when the folder holds a store already, or as ``write_shard`` does.
    """
    refuse_existing(store)
    form = ShardFormat(dtype, split)
    entries = []
    for site, rows in sorted(sites.items()):
        writer, start = SiteWriter(store, site, form, shard_rows), 0
        for part_ND in [rows] if isinstance(rows, Tensor) else rows:
            zeros = np.zeros(len(part_ND), dtype=np.int32)
            sequence = np.arange(start, start + len(part_ND))
            writer.add(SiteRows(part_ND, sequence, zeros, zeros))
            start += len(part_ND)
        entries.append(writer.finish())
    manifest = Manifest(
        format_version=FORMAT_VERSION, provenance=provenance, source=source, model=None,
        dataset=None, hookpoint="none", dtype=dtype, d_in=len(entries[0].mean),
        split=dict(split), sites=entries,
    )  # fmt: skip
    manifest.write(store)
    return manifest


def refuse_existing(store: Path) -> None:
    """Raise UserError when the folder holds a store already."""
    if (store / MANIFEST_FILE).exists():
        raise UserError(f"{store}: holds a store already; name another folder or remove it")


def _write_table(table: pa.Table, counts: list[int], path: Path) -> None:
    """Write each split in row groups of its own, so that a split can be read by row group."""
    width = table.schema.field("activation").type.byte_width
    group_rows = max(ROW_GROUP_BYTES // width, 1)
    with pq.ParquetWriter(
        path, table.schema, compression="none", use_dictionary=False, write_statistics=False,
        data_page_size=WHOLE_PAGE,
    ) as writer:  # fmt: skip
        start = 0
        for count in counts:
            if count:
                writer.write_table(table.slice(start, count), row_group_size=group_rows)
            start += count
