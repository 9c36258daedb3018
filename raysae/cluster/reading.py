"""How trials read a site's rows: shared in memory or streamed from disk."""

import math
from dataclasses import dataclass, replace
from typing import Literal, Protocol

from raysae.activations.store import TRAINING_SPLITS, Store
from raysae.activations.streaming import StreamedSite
from raysae.cluster.placement import can_scan
from raysae.cluster.sharing import share_site
from raysae.config import ResourcesConfig
from raysae.errors import UserError
from raysae.sites import Site
from raysae.storage.remote import fetched
from raysae.training.rows import IndexedRows

OBJECT_STORE_FRACTION = 0.8
"""The fraction of the object store that rows may fill; Ray spills to disk when it is full."""
MEMORY_FRACTION = 0.8
"""The fraction of a node's memory, as Ray counts it, that the windows of its trials may take."""
WINDOWS_HELD = 2
"""Shuffle windows that a streaming trial holds in memory at once."""


class OpenSite(Protocol):
    """A site that workers can read: ``SharedSite``, ``ScannedSite`` or ``StreamedSite``.

    It can be sent to any worker.
    """

    def rows(self, split: str) -> IndexedRows:
        """The rows of a split, ``[rows, d_in]``."""


@dataclass(frozen=True)
class Reading:
    """The way of reading that was chosen (``how``), with the reason in words (``why``)."""

    how: Literal["shared", "scan", "streaming"]
    why: str

    def __str__(self) -> str:
        return f"{self.how}, {self.why}"


def choose_reading(
    store: Store, sites: list[Site], resources: ResourcesConfig, together: int = 1
) -> Reading:
    """Choose shared when the sites fit in Ray's object store or ``resources.memory``; else a scan when
    ``together``, the number of trials at once, is more than one and CPUs can be spared; else streaming.

    ``resources.reading`` may demand one of them. Raises UserError when it demands shared reading and
    the rows do not fit.
    """
    needed, (budget, what) = sum(map(store.training_bytes, sites)), budget_of(resources)
    where = str(sites[0]) if len(sites) == 1 else f"{len(sites)} sites"
    figures = f"{needed / 1e9:.2f} GB at {where}, {what} {budget / 1e9:.2f} GB"
    if resources.reading in ("streaming", "scan"):
        return Reading(resources.reading, f"as asked for ({figures})")
    if needed <= budget:
        return Reading("shared", f"one copy in memory for all trials ({figures})")
    if resources.reading == "shared":
        raise UserError(
            f"resources.reading is 'shared', but that does not fit: {figures}; "
            "set it to streaming or auto, or use a machine with more memory"
        )
    if together > 1 and can_scan(resources):
        why = f"read once for {together} trials, as it does not fit in memory ({figures})"
        return Reading("scan", why)
    return Reading("streaming", f"it does not fit in memory ({figures})")


def check_sites(store: Store, sites: list[Site]) -> None:
    """Check that the shards of ``sites`` have the store's format and their recorded checksums.

    Of a store at a URI the sizes were compared when it was opened, and here the footers are read; the
    checksums are not compared, as that reads every byte (``python -m raysae.store verify URI`` does).
    Raises UserError naming the first shard that does not.
    """
    for site in sites:
        for split in TRAINING_SPLITS:
            store.split_segments(site, split)  # reads only the footers
    if store.uri is None:
        store.check(*(shard for site in sites for shard in store.entry(site).shards))


def open_site(reading: Reading, store: Store, site: Site) -> OpenSite:
    """Check a site and open it for the workers, shared or streamed.

    The rows of a site that is streamed from a URI are checked as they are read. Raises UserError when a
    shard was altered or a row is not finite.
    """
    if reading.how == "streaming":
        check_rows(store, site)
        return StreamedSite.of(store, site)
    check_sites(store, [site])
    opened = share_site(store, site)
    _check_finite(store, site, opened)
    return opened


def check_rows(store: Store, site: Site) -> None:
    """Check a site that is not held in memory, by reading it once; at a URI its rows are checked as they
    are read.

    Raises UserError when a shard was altered or a row is not finite.
    """
    check_sites(store, [site])
    if store.uri is None:
        _check_finite(store, site, StreamedSite.of(store, site))


def _check_finite(store: Store, site: Site, opened: OpenSite) -> None:
    for split in TRAINING_SPLITS:
        if getattr(store.entry(site).rows, split):
            _refuse_non_finite(f"{store.place}: {site}, {split}", opened.rows(split))


def fetched_site(site: OpenSite, uri: str) -> OpenSite:
    """The site of a store at ``uri`` of which each node keeps a copy (``resources.copy_store``).

    A streamed site reads the node's local copy, which is downloaded if needed. Raises UserError when
    ``uri`` cannot be reached.
    """
    return replace(site, store=fetched(uri)) if isinstance(site, StreamedSite) else site


def _refuse_non_finite(where: str, rows: IndexedRows) -> None:
    """Raise UserError with the count and the first row when rows hold NaN or infinite values."""
    bad, first, start = 0, None, 0
    for batch_BD in rows.batches():
        least, most = batch_BD.aminmax()
        if not (math.isfinite(least) and math.isfinite(most)):
            bad_rows = (~batch_BD.isfinite().all(dim=1)).nonzero().squeeze(1).tolist()
            first = start + bad_rows[0] if first is None else first
            bad += len(bad_rows)
        start += len(batch_BD)
    if bad:
        raise UserError(
            f"{where}: {bad} of {len(rows)} rows hold NaN or infinite values (first: row {first}); "
            "python -m raysae.store verify names the files; make the store again without such rows "
            "(source.non_finite=drop, or --non-finite drop on import)"
        )


def check_windows(store: Store, shuffle_rows: int, rows: int, workers: int) -> None:
    """Raise UserError when the shuffle windows of ``workers`` streaming trials do not fit in memory.

    ``shuffle_rows`` is the window's size and ``rows`` the site's size, both in rows.
    """
    window = min(shuffle_rows, rows) * store.row_bytes
    needed = WINDOWS_HELD * window * workers
    there = memory_there()
    if needed > there:
        raise UserError(
            f"each streaming trial holds {WINDOWS_HELD} windows of {window / 1e9:.2f} GB, "
            f"{needed / 1e9:.2f} GB for {workers} trials at once, but they may take only "
            f"{there / 1e9:.2f} GB; lower training.shuffle_rows or resources.max_concurrent"
        )


def memory_each(resources: ResourcesConfig, workers: int) -> float:
    """Bytes of rows that each of ``workers`` may hold; 0 when the recipe demands streaming."""
    return 0.0 if resources.reading == "streaming" else memory_there() / workers


def memory_there() -> float:
    """The bytes that rows may take in the memory of the connected Ray's workers."""
    import ray

    return MEMORY_FRACTION * ray.cluster_resources().get("memory", 0.0)


def budget_of(resources: ResourcesConfig) -> tuple[int, str]:
    """The bytes that rows may take in memory, and in words what says so."""
    import ray

    if resources.memory is not None:
        return resources.memory, "resources.memory allows"
    # a trial maps the rows in its own node's object store, and this process in that of its own, to
    # check them: the smallest one counts
    here = ray.get_runtime_context().get_node_id()
    nodes = [node for node in ray.nodes() if node["Alive"]]
    used = [
        node["Resources"] for node in nodes if "CPU" in node["Resources"] or node["NodeID"] == here
    ]
    there = min((one.get("object_store_memory", 0.0) for one in used), default=0.0)
    return int(OBJECT_STORE_FRACTION * there), "Ray's object store may take"
