"""Reading a store by site and split, from its files into torch tensors, without Ray.

Shapes: N rows, D d_in.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import pyarrow as pa

from raysae.activations.damage import damage_told
from raysae.activations.manifest import (
    MANIFEST_FILE,
    Manifest,
    SequencesEntry,
    ShardEntry,
    SiteEntry,
    manifest_of,
)
from raysae.activations.places import check_places
from raysae.activations.places import files_of as files_of
from raysae.activations.schema import ITEM_BYTES, empty_rows
from raysae.activations.sequences import read_sequences
from raysae.activations.shard_files import Segment as Segment
from raysae.activations.shard_files import ShardFiles
from raysae.activations.store_files import LocalFiles, StoreFiles, files_at
from raysae.errors import UserError
from raysae.sites import Position, Site
from raysae.storage.file_systems import Stamp
from raysae.storage.remote import fetched, is_uri
from raysae.storage.remote_files import RemoteFiles

if TYPE_CHECKING:  # a worker that only passes shards on need not import torch
    from torch import Tensor

    from raysae.activations.live import LivePlan
    from raysae.sae.truth import Truth
    from raysae.training.rows import Splits

Value = TypeVar("Value")
TRAINING_SPLITS = ("train", "validation")
"""The splits that a training reads; the test split is for a final evaluation."""
REQUESTS = 16
"""Requests for footers that are under way at a time, where a store is at a URI."""
NOTEBOOK_MEMORY = 4e9
"""Default limit of ``Store.site``, in bytes: larger sites are streamed."""


class Store:
    """A finished activation store. ``open_store`` has checked that all files have the right size."""

    def __init__(self, files: StoreFiles, manifest: Manifest):
        self.files, self.manifest = files, manifest
        self._entries = {entry.site: entry for entry in manifest.sites}
        self._checked: set[str] = set()
        self.reader = ShardFiles(files, manifest.dtype, manifest.d_in)

    @property
    def path(self) -> Path:
        """The store's folder. Raises UserError for a store at a URI, which has none here."""
        if not isinstance(self.files, LocalFiles):
            raise UserError(
                f"{self.place}: is read where it is and has no folder here; copy it to one first"
            )
        return self.files.folder

    @property
    def place(self) -> str:
        """The store's folder or URI, for messages; without the URI's ``?options``."""
        return self.files.place

    @property
    def uri(self) -> str | None:
        """What opens the store on any node; None for a folder."""
        return self.files.uri

    @property
    def opened_by(self) -> Path | str:
        """What opens the store in any process: its absolute folder, or its URI."""
        return self.uri or self.path.absolute()

    @property
    def sites(self) -> list[Site]:
        """All sites, sorted by layer, position and hookpoint."""
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
    def hookpoints(self) -> tuple[str, ...]:
        """The hookpoints, in the order of the source; where there are several, sites name theirs."""
        return self.manifest.hookpoints

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
            named = ", ".join(self.hookpoints) if len(self.hookpoints) > 1 else ""
            raise UserError(
                f"{self.place}: the store has no site {site}; its layers are {layers}; "
                f"its positions are {positions}{named and f'; its hookpoints are {named}'}"
            )
        return self._entries[site]

    def truth(self) -> "Tensor | None":
        """The true atoms ``[atoms, d_in]`` of a synthetic store; None for other stores.

        Raises UserError when the file of atoms is damaged.
        """
        if self.manifest.provenance != "synthetic":
            return None
        from raysae.activations.synthetic import read_truth  # imported late: it imports this file

        return read_truth(self.files, self.d_in)

    def known_truth(self) -> "Truth | None":
        """The true atoms of a synthetic store, and where they fire in a sample of rows, for metrics.

        None for other stores. Raises UserError when a file of the truth is damaged.
        """
        atoms_GD = self.truth()
        if atoms_GD is None:
            return None
        from raysae.activations.truth_files import read_sample
        from raysae.sae.truth import Truth

        return Truth(atoms_GD, *read_sample(self.files, atoms_GD))

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

        At a URI only the rows are read, and they must be finite; in a folder the checksums are compared.
        Raises UserError when the store lacks the site, or a file was altered.
        """
        start = 0
        for shard in self.shards(site, split):
            if self.uri is None:
                self.check(shard)
            rows_ND = self.rows(self.segments(shard, split))
            if self.uri is not None:
                refuse_rows(rows_ND, f"{self.place}: {site}, {split}", start)
            yield rows_ND
            start += len(rows_ND)

    def rows(self, segments: "list[Segment]") -> "Tensor":
        """The rows of all ``segments`` in one tensor ``[rows, d_in]``, read by several threads.

        Raises UserError when a file ends too early.
        """
        rows_ND = empty_rows(
            sum(segment.rows for segment in segments), self.d_in, self.manifest.dtype
        )
        places = rows_ND.split([segment.rows for segment in segments])
        threads = None if self.uri is None else REQUESTS
        list(_in_threads(self.read_into, places, segments, threads=threads))
        return rows_ND

    def read_into(self, rows_ND: "Tensor", segment: Segment, first: int = 0) -> None:
        """Fill ``rows_ND`` with the rows of ``segment`` that start at its row ``first``.

        Raises UserError when the file ends too early.
        """
        self.reader.read_into(rows_ND, segment, first)

    def fill(
        self, rows_ND: "Tensor", parts: "Sequence[tuple[Segment, int, int, int]]", threads: int
    ) -> None:
        """Fill ``rows_ND`` by ``parts``, such as ``self.parts`` gives: several threads read at a time.

        Raises UserError when a file ends too early.
        """
        places = [rows_ND[at : at + count] for _, _, count, at in parts]
        segments, firsts = [part[0] for part in parts], [part[1] for part in parts]
        list(_in_threads(self.read_into, places, segments, firsts, threads=threads))

    def segments(self, shard: ShardEntry, split: str) -> list[Segment]:
        """Find the rows of ``split`` in ``shard``; the segments are in order.

        Raises UserError when the file is not a readable shard of this store.
        """
        return self.reader.segments(shard, split)

    def split_segments(self, site: Site, split: str) -> list[Segment]:
        """The rows of a site's split, in order. Raises UserError as ``segments`` does.

        At a URI several footers are read at a time: each is a request or two.
        """
        shards = self.shards(site, split)
        if self.uri is None:
            return [segment for shard in shards for segment in self.segments(shard, split)]
        found = _in_threads(lambda shard: self.segments(shard, split), shards, threads=REQUESTS)
        return [segment for segments in found for segment in segments]

    def read(self, shard: ShardEntry, split: str, columns: list[str] | None = None) -> pa.Table:
        """One split of one shard as an Arrow table, of all or the named columns.

        The shard's checksum is checked the first time. Raises UserError, naming the file, when the
        file was altered.
        """
        self.check(shard)
        return self.reader.table(shard, split, columns)

    def parts(
        self, site: Site, split: str, start: int, stop: int
    ) -> Iterator[tuple[Segment, int, int, int]]:
        """Where a split's rows from ``start`` up to ``stop`` lie: a segment, the first row in it, the
        number of rows, and the place of the first among them all.

        Only the footers of the shards that have them are read. Raises UserError as ``segments`` does.
        """
        begin = 0
        for shard in self.entry(site).shards:
            end = begin + getattr(shard.rows, split)
            if max(begin, start) < min(end, stop):
                for segment in self.segments(shard, split):  # their rows are as many as the entry's
                    first, last = max(start - begin, 0), min(stop - begin, segment.rows)
                    if first < last:
                        yield segment, first, last - first, begin + first - start
                    begin += segment.rows
            begin = end

    def sample(self, shard: ShardEntry, split: str, index: Sequence[int]) -> pa.Table:
        """Some rows of one split of one shard, all columns; ``index`` are sorted numbers in the split.

        At a URI only these rows' activations are read, and no checksum is checked. Raises UserError as
        ``read`` does.
        """
        if self.uri is None:
            return self.read(shard, split).take(pa.array(index, pa.int64()))
        return self.reader.picked(shard, split, index)

    def sequences(self, part: SequencesEntry) -> pa.Table:
        """One file of the store's sequences, a table of ``SEQUENCES_SCHEMA``.

        Its checksum is checked the first time. Raises UserError when the file was altered.
        """
        self.check(part)
        file = self.files.file(part.file)
        with file.told():
            return read_sequences(file)

    def check(self, *files: ShardEntry | SequencesEntry) -> None:
        """Compare files with their checksums, several at a time; each file is compared only once.

        Raises UserError, naming the file, when a file was altered.
        """
        waiting = [file for file in files if file.file not in self._checked]
        for file, found in zip(waiting, _in_threads(self._checksum, waiting), strict=True):
            if found != file.sha256:
                raise UserError(
                    f"{self.files.file(file.file)}: the file was altered after it was written "
                    f"(sha256 {found[:12]}, the manifest has {file.sha256[:12]}); make the store again"
                )
            self._checked.add(file.file)

    def trust(self) -> "Store":
        """Mark all shards as checked and return this store: the caller has just checked them."""
        self._checked.update(shard.file for entry in self.manifest.sites for shard in entry.shards)
        return self

    def _checksum(self, file: ShardEntry | SequencesEntry) -> str:
        there = self.files.file(file.file)
        with damage_told(there, "file"), there.told():
            return there.sha256()

    def _split(self, site: Site, split: str) -> "Tensor":
        import torch

        blocks = list(self.blocks(site, split))
        if not blocks:
            raise UserError(f"{self.place}: {site} has no {split} rows")
        return blocks[0] if len(blocks) == 1 else torch.cat(blocks)


def refuse_rows(rows_ND: "Tensor", name: str, start: int) -> None:
    """Raise UserError, with their ``name`` and the row, when rows that come from a URI are not finite.

    ``start`` is the number of the first row.
    """
    from raysae.training.finite import NonFiniteRowsError, refuse_non_finite

    try:
        refuse_non_finite(rows_ND, name, start)
    except NonFiniteRowsError as error:
        raise UserError(str(error)) from None


def _in_threads(
    function: Callable[..., Value], *items: Sequence[Any], threads: int | None = None
) -> Iterator[Value]:
    """``map`` in several threads; in this one when one suffices, as for the one item of small shards."""
    if len(items[0]) < 2 or threads == 1:
        yield from map(function, *items)
        return
    with ThreadPoolExecutor(threads or max(os.cpu_count() or 1, 1)) as pool:
        yield from pool.map(function, *items)


def open_store(
    path: str | Path, *, copy: bool = False, seen: Mapping[str, Stamp] | None = None
) -> Store:
    """Open a store; check that its manifest is valid and that every file has the listed size.

    ``path`` is a folder, or a URI such as ``s3://BUCKET/STORE``, which is read in ranges of bytes where
    it is; with ``copy`` it is copied to this node first. ``seen`` are the stamps of some of its files
    that another process has seen. Raises UserError, naming the file, when something is missing,
    truncated or changed, or when the store has no sites.
    """
    if copy and is_uri(str(path)):
        path = fetched(str(path))
    files = RemoteFiles(str(path), seen) if is_uri(str(path)) else files_at(path)
    manifest = manifest_of(files)
    if manifest.d_in < 1 or not manifest.sites:
        found = f"d_in {manifest.d_in}" if manifest.d_in < 1 else "no sites"
        raise UserError(
            f"{files.file(MANIFEST_FILE)}: {found}; expected at least 1; make the store again"
        )
    check_places(files, manifest)
    return Store(files, manifest)
