"""Reading a store: by site and split, zero-copy from Arrow to torch, without Ray."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

from raysae.activations.manifest import Manifest, ShardEntry, SiteEntry, read_manifest
from raysae.activations.schema import D_IN_KEY, DTYPE_KEY, to_torch
from raysae.activations.splits import SPLITS
from raysae.errors import UserError
from raysae.sites import Position, Site

if TYPE_CHECKING:  # a worker that only hands shards on need not import torch
    from torch import Tensor


class Store:
    """A finished activation store, its shards all present and of the right size."""

    def __init__(self, path: Path, manifest: Manifest):
        self.path, self.manifest = path, manifest
        self._entries = {entry.site: entry for entry in manifest.sites}
        self._checked: set[str] = set()

    @property
    def sites(self) -> list[Site]:
        return sorted(self._entries)

    @property
    def layers(self) -> list[int]:
        return sorted({site.layer for site in self.sites})

    @property
    def positions(self) -> list[Position]:
        """Positions in order; ``"all"`` last."""
        return list(
            dict.fromkeys(site.position for site in sorted(Site(0, s.position) for s in self.sites))
        )

    @property
    def d_in(self) -> int:
        return self.manifest.d_in

    @property
    def digest(self) -> str:
        return self.manifest.digest()

    def entry(self, site: Site) -> SiteEntry:
        """The site's manifest entry. Raises UserError, listing what there is, when it lacks it."""
        if site not in self._entries:
            layers = ", ".join(str(layer) for layer in self.layers)
            positions = ", ".join(str(position) for position in self.positions)
            raise UserError(
                f"{self.path}: the store has no site {site}; its layers are {layers}; "
                f"its positions are {positions}"
            )
        return self._entries[site]

    def train(self, site: Site) -> "Tensor":
        """The site's training rows ``[rows, d_in]`` in the store's dtype."""
        return self._split(site, "train")

    def validation(self, site: Site) -> "Tensor":
        return self._split(site, "validation")

    def test(self, site: Site) -> "Tensor":
        return self._split(site, "test")

    def blocks(self, site: Site, split: str) -> "Iterator[Tensor]":
        """The split's rows shard by shard, as read-only ``[rows, d_in]`` views of what was read."""
        for shard in self.entry(site).shards:
            yield from to_torch(
                self.read(shard, split, ["activation"])["activation"], self.manifest.dtype
            )

    def read(self, shard: ShardEntry, split: str, columns: list[str] | None = None) -> pa.Table:
        """One split of one shard, checked against its checksum the first time it is read.

        Raises UserError, naming the file, when the bytes are not those that were written.
        """
        self._check_bytes(shard)
        path = self.path / shard.file
        try:
            file = pq.ParquetFile(path)
            groups = _groups_of(file, shard, split)
            return file.read_row_groups(groups, columns=columns)
        except pa.ArrowInvalid as error:
            raise UserError(f"{path}: not a readable Parquet file ({error})") from None

    def verify(self) -> None:
        """Check every shard's size, checksum and schema. Raises UserError at the first that fails."""
        for entry in self.manifest.sites:
            for shard in entry.shards:
                self._check_bytes(shard)
                self._check_schema(shard)

    def _split(self, site: Site, split: str) -> "Tensor":
        import torch

        blocks = list(self.blocks(site, split))
        if not blocks:
            raise UserError(f"{self.path}: {site} has no {split} rows")
        return blocks[0] if len(blocks) == 1 else torch.cat(blocks)

    def _check_bytes(self, shard: ShardEntry) -> None:
        if shard.file in self._checked:
            return
        with (self.path / shard.file).open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != shard.sha256:
            raise UserError(
                f"{self.path / shard.file}: the file was altered after it was written (sha256 "
                f"{found[:12]}, the manifest has {shard.sha256[:12]}); extract the store again"
            )
        self._checked.add(shard.file)

    def _check_schema(self, shard: ShardEntry) -> None:
        metadata = pq.read_schema(self.path / shard.file).metadata or {}
        found = metadata.get(DTYPE_KEY, b"?").decode(), metadata.get(D_IN_KEY, b"?").decode()
        expected = self.manifest.dtype, str(self.manifest.d_in)
        if found != expected:
            raise UserError(
                f"{self.path / shard.file}: holds {found[0]} rows of d_in {found[1]}; "
                f"the store is {expected[0]}, d_in {expected[1]}"
            )


def open_store(path: str | Path) -> Store:
    """Open a store, checking that its manifest is sound and every shard is there and whole in size.

    Raises UserError, naming the file, when something is missing or truncated.
    """
    path = Path(path)
    manifest = read_manifest(path)
    for entry in manifest.sites:
        for shard in entry.shards:
            _check_size(path / shard.file, shard.bytes)
    return Store(path, manifest)


def _check_size(path: Path, expected: int) -> None:
    if not path.is_file():
        raise UserError(f"{path}: missing, though the manifest lists it; extract the store again")
    found = path.stat().st_size
    if found != expected:
        raise UserError(
            f"{path}: {found} bytes, the manifest has {expected}: the shard is truncated or "
            "altered; extract the store again"
        )


def _groups_of(file: pq.ParquetFile, shard: ShardEntry, split: str) -> list[int]:
    """The row groups that hold ``split``: a shard's rows are ordered by split, group by group."""
    start = sum(getattr(shard.rows, name) for name in SPLITS[: SPLITS.index(split)])
    end = start + getattr(shard.rows, split)
    groups, row = [], 0
    for number in range(file.metadata.num_row_groups):
        if start <= row < end:
            groups.append(number)
        row += file.metadata.row_group(number).num_rows
    return groups
