"""Keeping live rows: the first pass also writes them, and the store is then read like any other.

A shard is kept when its report is written, after its files at all sites; the store is kept when its
manifest is replaced. Shards of the head are kept from the start.
"""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from raysae.activations.manifest import Manifest, ShardEntry, SiteEntry
from raysae.activations.store import Store, open_store
from raysae.activations.writer import (
    SiteRows,
    WrittenShard,
    site_entry,
    statistics_of,
    write_shard,
)
from raysae.errors import UserError
from raysae.extraction.plan import OTHER_COLUMNS_BYTES, ExtractionPlan
from raysae.extraction.shards import kept_format, record_of, sound_report, written_shards
from raysae.sites import Site
from raysae.storage.files import remove_folder, write_json

KEEPING_FOLDER = "keeping"
"""A folder in a live store's folder, with the reports of kept shards, until all are kept."""
RESERVE = 1.1
"""With ``source.keep=auto`` so many times the bytes that are still to be written must be free."""


@dataclass(frozen=True)
class Keep:
    """Whether a live store's training rows are kept, and why."""

    keep: bool
    why: str

    def __str__(self) -> str:
        return f"the training rows are {'kept' if self.keep else 'not kept'}: {self.why}"


@dataclass(frozen=True)
class KeptShard:
    """A shard whose training rows are on disk: its entries, by site."""

    entries: Mapping[Site, ShardEntry]

    def rows(self, store: Store, sites: tuple[Site, ...]) -> dict[Site, Tensor]:
        """The shard's training rows at ``sites``, read from its files.

        Raises UserError when a file was altered.
        """
        return {site: self._rows(store, site) for site in sites}

    def _rows(self, store: Store, site: Site) -> Tensor:
        entry = self.entries.get(site)
        if entry is None:
            return store.rows([])
        store.check(entry)
        return store.rows(store.segments(entry, "train"))


def decide_keep(store: Store, wanted: str) -> Keep:
    """Whether to keep a live store's training rows: ``wanted`` is ``source.keep``.

    Raises UserError when it is ``yes`` and the disk does not hold them.
    """
    if wanted == "no":
        return Keep(False, "source.keep=no")
    return decide(wanted, bytes_to_keep(store), store.path)


def decide(wanted: str, needed: int, folder: Path) -> Keep:
    """Whether ``needed`` bytes are written to ``folder``, which exists. Raises as ``decide_keep``."""
    free = shutil.disk_usage(folder).free
    figures = f"{needed / 1e6:,.1f} MB to write, {free / 1e6:,.1f} MB free"
    if wanted == "yes" and needed > free:
        raise UserError(
            f"source.keep=yes: the disk of {folder} does not hold the training rows ({figures}); free "
            "some space, name another folder (store=FOLDER), or set source.keep to no"
        )
    fits = needed * RESERVE <= free
    return Keep(wanted == "yes" or fits, figures if fits else f"{figures}, with a tenth in reserve")


def bytes_to_keep(store: Store) -> int:
    """Bytes of the training rows that are not on disk yet."""
    live = store.live
    if live is None:
        return 0
    missing = [shard for shard in range(live.shards) if kept_shard(store, shard) is None]
    rows = sum(live.rows(site, shard) for site in store.sites for shard in missing)
    return rows * (store.row_bytes + OTHER_COLUMNS_BYTES)


def write_kept(
    store: Store,
    plan: ExtractionPlan,
    shard: int,
    rows: Mapping[Site, SiteRows],
    left_out: Mapping[Site, int],
) -> None:
    """Write and commit the training rows of a shard, which has them at all sites of the store."""
    sites = []
    for site in store.sites:
        if len(rows[site]):
            written = write_shard(store.path, site, shard, rows[site], kept_format(plan))
            sites.append(record_of(site, written, left_out[site]))
    write_json(_report_file(store.path, shard), {"weights_sha256": _weights(store), "sites": sites})


def kept_shard(store: Store, shard: int) -> KeptShard | None:
    """A shard whose training rows are on disk; None when they are not, or not yet all."""
    assert store.live is not None
    if store.live.kept or shard < store.live.head:
        return KeptShard(_listed(store.manifest, shard))
    report = _report(store, shard)
    if report is None:
        return None
    return KeptShard({site: one[0].entry for site, one in written_shards([report]).items()})


def finish_kept(store: Store) -> Store:
    """Once every shard is kept, list the shards in the manifest; returns the store, opened anew.

    Returns ``store`` itself while shards are missing, or when it is kept already. The digest stays.
    """
    live = store.live
    if live is None or live.kept:
        remove_folder(store.path / KEEPING_FOLDER)  # left when the process was killed just before
        return store
    reports = [_report(store, shard) for shard in range(live.head, live.shards)]
    done = [report for report in reports if report is not None]
    if len(done) < len(reports):
        return store
    written = written_shards(done)
    sites = [_kept_entry(entry, written.get(entry.site, [])) for entry in store.manifest.sites]
    kept = store.manifest.live
    assert kept is not None
    changed = {"sites": sites, "live": kept.model_copy(update={"kept": True})}
    store.manifest.model_copy(update=changed).write(store.path)
    remove_folder(store.path / KEEPING_FOLDER)
    return open_store(store.path)


def live_entry(site: Site, shards: list[WrittenShard], planned: int) -> SiteEntry:
    """The manifest entry of a live site: its training rows are those that are planned, its statistics
    those of the rows on disk."""
    entry = site_entry(site, shards)
    return entry.model_copy(update={"rows": entry.rows.model_copy(update={"train": planned})})


def _kept_entry(entry: SiteEntry, new: list[WrittenShard]) -> SiteEntry:
    """A site's entry with the shards of its training rows, in the order of the shards' numbers."""
    rows = sum(shard.rows.total for shard in entry.shards)
    before = WrittenShard(
        entry.shards[0], np.array(entry.mean) * rows, entry.mean_square_norm * rows, entry.dropped
    )
    statistics = statistics_of([before, *new], rows + sum(one.entry.rows.total for one in new))
    shards = sorted([*entry.shards, *(shard.entry for shard in new)], key=_place)
    return entry.model_copy(update={**statistics, "shards": shards})


def _place(shard: ShardEntry) -> tuple[str, bool]:
    """By number; the training rows first."""
    return Path(shard.file).stem[-5:], shard.rows.train == 0


def _listed(manifest: Manifest, shard: int) -> dict[Site, ShardEntry]:
    """The training rows of a shard that the manifest lists, by site."""
    return {
        entry.site: one
        for entry in manifest.sites
        for one in entry.shards
        if one.rows.train and int(Path(one.file).stem.rpartition("-")[2]) == shard
    }


def _report(store: Store, shard: int) -> dict[str, Any] | None:
    report = sound_report(store.files, _report_file(store.path, shard))
    return report if report and report["weights_sha256"] == _weights(store) else None


def _report_file(store: Path, shard: int) -> Path:
    return store / KEEPING_FOLDER / f"shard-{shard:05d}.json"


def _weights(store: Store) -> Any:
    return (store.manifest.model or {}).get("weights_sha256")
