"""Reading a store by site and split, from its files into torch tensors, without Ray.

Shapes: N rows, D d_in.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from raysae.activations.damage import damage_told
from raysae.activations.gone import told_if_gone
from raysae.activations.manifest import (
    MANIFEST_FILE,
    Manifest,
    SequencesEntry,
    ShardEntry,
    SiteEntry,
    read_manifest,
)
from raysae.activations.pages import activation_runs, footer_problem, uneven_columns
from raysae.activations.places import check_places
from raysae.activations.places import files_of as files_of
from raysae.activations.schema import (
    D_IN_KEY,
    DTYPE_KEY,
    ITEM_BYTES,
    columns_text,
    shard_schema,
    to_torch,
    torch_dtype,
)
from raysae.activations.sequences import read_sequences
from raysae.activations.splits import SPLITS
from raysae.errors import UserError
from raysae.sites import Position, Site
from raysae.storage.files import sha256_of
from raysae.storage.remote import fetched, is_uri
from raysae.storage.untrusted import usable_path

if TYPE_CHECKING:  # a worker that only passes shards on need not import torch
    from torch import Tensor

    from raysae.activations.live import LivePlan
    from raysae.training.rows import Splits

Value = TypeVar("Value")
TRAINING_SPLITS = ("train", "validation")
"""The splits that a training reads; the test split is for a final evaluation."""
SHARD = "Parquet file"
NOTEBOOK_MEMORY = 4e9
"""Default limit of ``Store.site``, in bytes: larger sites are streamed."""


@dataclass(frozen=True)
class Segment:
    """Consecutive rows of one split: a range of bytes in a file, or a row group to be decoded."""

    shard: ShardEntry
    group: int
    rows: int
    offset: int | None
    """First byte of the rows in the file; None when the row group must be decoded."""


class Store:
    """A finished activation store. ``open_store`` has checked that all files have the right size."""

    def __init__(self, path: Path, manifest: Manifest):
        self.path, self.manifest = path, manifest
        self._entries = {entry.site: entry for entry in manifest.sites}
        self._checked: set[str] = set()

    @property
    def place(self) -> str:
        """The store's folder or URI, as another process opens it."""
        return str(self.path.absolute())

    @property
    def sites(self) -> list[Site]:
        """All sites, sorted by layer and position."""
        return sorted(self._entries)

    @property
    def layers(self) -> list[int]:
        """The layers that have sites, in order."""
        return sorted({site.layer for site in self.sites})

    @property
    def positions(self) -> list[Position]:
        """Positions in order: numbers, then patterns, then ``"all"``."""
        return list(
            dict.fromkeys(site.position for site in sorted(Site(0, s.position) for s in self.sites))
        )

    @property
    def d_in(self) -> int:
        """Values per activation."""
        return self.manifest.d_in

    @property
    def row_bytes(self) -> int:
        """Bytes of one activation."""
        return self.d_in * ITEM_BYTES[self.manifest.dtype]

    @cached_property
    def digest(self) -> str:
        """A hash of the manifest, and through its checksums of every byte of the store; of a live store
        without its training rows, so that it stays the same when these are kept."""
        return self.manifest.digest()

    @cached_property
    def live(self) -> "LivePlan | None":
        """The plan of the training rows of a live store; None for other stores."""
        from raysae.activations.live import LivePlan  # imported late: it imports torch

        return None if self.manifest.live is None else LivePlan(self.manifest.live)

    @property
    def computes_rows(self) -> bool:
        """Whether the training rows are computed while training: a live store that was not kept."""
        return self.live is not None and not self.live.kept

    def head_rows(self, site: Site) -> int:
        """Training rows that are on disk before training: the head of a live store (``read_head`` in
        ``live.py`` reads them), all of other stores."""
        return self.entry(site).rows.train if self.live is None else self.live.head_rows(site)

    def shards(self, site: Site, split: str) -> list[ShardEntry]:
        """The shards that hold rows of ``split``, in order.

        Raises UserError for the training rows of a live store, which are not on disk.
        """
        if split == "train" and self.computes_rows:
            from raysae.activations.live import not_on_disk

            raise not_on_disk(self, site)
        return [shard for shard in self.entry(site).shards if getattr(shard.rows, split)]

    def entry(self, site: Site) -> SiteEntry:
        """The site's manifest entry. Raises UserError, listing the store's sites, when it has none."""
        if site not in self._entries:
            layers = ", ".join(str(layer) for layer in self.layers)
            positions = ", ".join(str(position) for position in self.positions)
            raise UserError(
                f"{self.path}: the store has no site {site}; its layers are {layers}; "
                f"its positions are {positions}"
            )
        return self._entries[site]

    def truth(self) -> "Tensor | None":
        """The true atoms ``[atoms, d_in]`` of a synthetic store; None for other stores.

        Raises UserError when the file of atoms is damaged.
        """
        if self.manifest.provenance != "synthetic":
            return None
        from raysae.activations.synthetic import read_truth  # imported late: it imports this file

        return read_truth(self.path, self.d_in)

    def training_bytes(self, site: Site) -> int:
        """Bytes of the site's training and validation rows in memory."""
        rows = self.entry(site).rows
        return sum(getattr(rows, split) for split in TRAINING_SPLITS) * self.row_bytes

    def site(self, site: Site, memory: float = NOTEBOOK_MEMORY) -> "Splits":
        """The site's training and validation rows, for ``raysae.fit``.

        They are loaded into memory, or streamed from disk when they take more than ``memory`` bytes.
        Raises UserError when the store lacks the site, or a file was altered.
        """
        from raysae.activations.streaming import rows_within  # imported late: it imports this file

        return rows_within(self, site, memory)

    def train(self, site: Site) -> "Tensor":
        """The site's training rows ``[rows, d_in]`` in the store's dtype."""
        return self._split(site, "train")

    def validation(self, site: Site) -> "Tensor":
        """The site's validation rows, as ``train`` gives the training rows."""
        return self._split(site, "validation")

    def test(self, site: Site) -> "Tensor":
        """The site's test rows, as ``train`` gives the training rows."""
        return self._split(site, "test")

    def blocks(self, site: Site, split: str) -> "Iterator[Tensor]":
        """The split's rows shard by shard, ``[rows, d_in]`` in the store's dtype.

        Raises UserError when the store lacks the site, or a file was altered.
        """
        for shard in self.shards(site, split):
            self.check(shard)
            yield self.rows(self.segments(shard, split))

    def rows(self, segments: "list[Segment]") -> "Tensor":
        """The rows of all ``segments`` in one tensor ``[rows, d_in]``, read by several threads.

        Raises UserError when a file ends too early.
        """
        import torch

        rows_ND = torch.empty(
            sum(segment.rows for segment in segments), self.d_in,
            dtype=torch_dtype(self.manifest.dtype),
        )  # fmt: skip
        places = rows_ND.split([segment.rows for segment in segments])
        list(_in_threads(self.read_into, places, segments))
        return rows_ND

    def read_into(self, rows_ND: "Tensor", segment: Segment, first: int = 0) -> None:
        """Fill ``rows_ND`` with the rows of ``segment`` that start at its row ``first``.

        Raises UserError when the file ends too early.
        """
        path = self.path / segment.shard.file
        with damage_told(path, SHARD):
            if segment.offset is None:
                rows_ND.copy_(self._decoded(path, segment)[first : first + len(rows_ND)])
            else:
                self._read_bytes(path, rows_ND, segment.offset + first * self.row_bytes)

    def _read_bytes(self, path: Path, rows_ND: "Tensor", at: int) -> None:
        """Fill ``rows_ND`` with the file's bytes from ``at`` on."""
        import torch

        memory = memoryview(rows_ND.view(torch.uint8).numpy().data).cast("B")
        with told_if_gone(self.path, path), path.open("rb", buffering=0) as file:
            while memory:
                read = os.preadv(file.fileno(), [memory], at)
                if not read:
                    raise UserError(f"{path}: the file ends too early; it was truncated")
                memory, at = memory[read:], at + read

    def segments(self, shard: ShardEntry, split: str) -> list[Segment]:
        """Find the rows of ``split`` in ``shard``; the segments are in order.

        Raises UserError when the file is not a readable shard of this store.
        """
        path = self.path / shard.file
        with (
            damage_told(path, SHARD),
            told_if_gone(self.path, path),
            path.open("rb", buffering=0) as handle,
        ):
            file = self._open(path)
            runs = activation_runs(handle.fileno(), file.metadata, self.row_bytes)
        groups = _groups_of(file.metadata, shard, split)
        found = sum(file.metadata.row_group(i).num_rows for i in groups)
        if found != getattr(shard.rows, split):
            raise _other_rows(path, found, split, getattr(shard.rows, split))
        if runs is None:
            return [Segment(shard, i, file.metadata.row_group(i).num_rows, None) for i in groups]
        return [Segment(shard, i, run.rows, run.offset) for i in groups for run in runs[i]]

    def read(self, shard: ShardEntry, split: str, columns: list[str] | None = None) -> pa.Table:
        """One split of one shard as an Arrow table, of all or the named columns.

        The shard's checksum is checked the first time. Raises UserError, naming the file, when the
        file was altered.
        """
        self.check(shard)
        path, wanted = self.path / shard.file, getattr(shard.rows, split)
        with damage_told(path, SHARD):
            file = self._open(path)
            table = file.read_row_groups(_groups_of(file.metadata, shard, split), columns=columns)
            table.validate()
        if len(table) != wanted:
            raise _other_rows(path, len(table), split, wanted)
        return table

    def sequences(self, part: SequencesEntry) -> pa.Table:
        """One file of the store's sequences, a table of ``SEQUENCES_SCHEMA``.

        Its checksum is checked the first time. Raises UserError when the file was altered.
        """
        self.check(part)
        with told_if_gone(self.path, self.path / part.file):
            return read_sequences(self.path / part.file)

    def check(self, *files: ShardEntry | SequencesEntry) -> None:
        """Compare files with their checksums, several at a time; each file is compared only once.

        Raises UserError, naming the file, when a file was altered.
        """
        waiting = [file for file in files if file.file not in self._checked]
        for file, found in zip(waiting, _in_threads(self._checksum, waiting), strict=True):
            if found != file.sha256:
                raise UserError(
                    f"{self.path / file.file}: the file was altered after it was written "
                    f"(sha256 {found[:12]}, the manifest has {file.sha256[:12]}); make the store again"
                )
            self._checked.add(file.file)

    def trust(self) -> "Store":
        """Mark all shards as checked and return this store: the caller has just checked them."""
        self._checked.update(shard.file for entry in self.manifest.sites for shard in entry.shards)
        return self

    def _checksum(self, file: ShardEntry | SequencesEntry) -> str:
        with (
            damage_told(self.path / file.file, "file"),
            told_if_gone(self.path, self.path / file.file),
        ):
            return sha256_of(self.path / file.file)

    def _split(self, site: Site, split: str) -> "Tensor":
        import torch

        blocks = list(self.blocks(site, split))
        if not blocks:
            raise UserError(f"{self.path}: {site} has no {split} rows")
        return blocks[0] if len(blocks) == 1 else torch.cat(blocks)

    def _decoded(self, path: Path, segment: Segment) -> "Tensor":
        import torch

        table = self._open(path).read_row_group(segment.group, columns=["activation"])
        table.validate()
        rows_ND = torch.cat(to_torch(table["activation"], self.manifest.dtype))
        if len(rows_ND) != segment.rows:
            raise UserError(
                f"{path}: row group {segment.group} has {len(rows_ND)} rows, its footer says "
                f"{segment.rows}; make the store again"
            )
        return rows_ND

    def _open(self, path: Path) -> pq.ParquetFile:
        with damage_told(path, SHARD), told_if_gone(self.path, path):
            file = pq.ParquetFile(path)
            self._check_schema(path, file.schema_arrow)
            problem = footer_problem(file.metadata, path.stat().st_size, self.row_bytes)
            problem = problem or uneven_columns(file.metadata)
        if problem:
            raise UserError(f"{path}: its footer claims {problem}; make the store again")
        return file

    def _check_schema(self, path: Path, schema: pa.Schema) -> None:
        metadata = schema.metadata or {}
        found = tuple(
            metadata.get(key, b"?")[:40].decode(errors="replace") for key in (DTYPE_KEY, D_IN_KEY)
        )
        expected = self.manifest.dtype, str(self.manifest.d_in)
        if found != expected:
            raise UserError(
                f"{path}: holds {found[0]} rows of d_in {found[1]}; "
                f"the store is {expected[0]}, d_in {expected[1]}"
            )
        wanted = shard_schema(self.manifest.dtype, self.d_in)
        if not schema.equals(wanted):
            raise UserError(
                f"{path}: its columns are {columns_text(schema)}; expected {columns_text(wanted)}"
            )


def _in_threads(function: Callable[..., Value], *items: Sequence[Any]) -> Iterator[Value]:
    """``map`` in several threads; in this one when there is one item, as in small shards."""
    if len(items[0]) < 2:
        yield from map(function, *items)
        return
    with ThreadPoolExecutor(max(os.cpu_count() or 1, 1)) as pool:
        yield from pool.map(function, *items)


def open_store(path: str | Path) -> Store:
    """Open a store; check that its manifest is valid and that every file has the listed size.

    ``path`` is a folder, or a URI such as ``s3://BUCKET/STORE``, which is copied to this node first.
    Raises UserError, naming the file, when something is missing or truncated, or when the store has no
    sites.
    """
    if is_uri(str(path)):
        return _open_remote(str(path))
    path = usable_path(path)
    manifest = read_manifest(path)
    if manifest.d_in < 1 or not manifest.sites:
        found = f"d_in {manifest.d_in}" if manifest.d_in < 1 else "no sites"
        raise UserError(
            f"{path / MANIFEST_FILE}: {found}; expected at least 1; make the store again"
        )
    check_places(path, manifest)
    return Store(path, manifest)


def _open_remote(uri: str) -> Store:
    folder = fetched(uri)
    if not (folder / MANIFEST_FILE).is_file():
        raise UserError(
            f"{uri.partition('?')[0]}: holds no activation store (no {MANIFEST_FILE}); extract to a "
            "folder (store=FOLDER), then copy that folder there"
        )
    return open_store(folder)


def _other_rows(path: Path, found: int, split: str, expected: int) -> UserError:
    return UserError(
        f"{path}: holds {found} {split} rows, the manifest has {expected}; make the store again"
    )


def _groups_of(metadata: pq.FileMetaData, shard: ShardEntry, split: str) -> list[int]:
    """The row groups that hold ``split``: a shard's rows are ordered by split, group by group."""
    start = sum(getattr(shard.rows, name) for name in SPLITS[: SPLITS.index(split)])
    end = start + getattr(shard.rows, split)
    groups, row = [], 0
    for number in range(metadata.num_row_groups):
        if start <= row < end:
            groups.append(number)
        row += metadata.row_group(number).num_rows
    return groups
