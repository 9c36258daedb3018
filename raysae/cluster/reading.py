"""Shared or streamed: how the trials of a sweep come by a site's rows, and why."""

import math
from dataclasses import dataclass, replace
from typing import Literal, Protocol

from raysae.activations.store import TRAINING_SPLITS, Store
from raysae.activations.streaming import StreamedSite
from raysae.cluster.sharing import share_site
from raysae.config import ResourcesConfig
from raysae.errors import UserError
from raysae.sites import Site
from raysae.storage.remote import fetched
from raysae.training.rows import IndexedRows

OBJECT_STORE_FRACTION = 0.8
"""How full the object store may get: Ray spills to disk beyond."""
MEMORY_FRACTION = 0.8
"""How much of the memory that Ray counts as a node's the windows of a node's trials may take."""
WINDOWS_HELD = 2


class OpenSite(Protocol):
    """A site's rows on their way to a worker: ``SharedSite`` or ``StreamedSite``."""

    def rows(self, split: str) -> IndexedRows: ...


@dataclass(frozen=True)
class Reading:
    """The path that was chosen, with the reason in words."""

    how: Literal["shared", "streaming"]
    why: str

    def __str__(self) -> str:
        return f"{self.how}, {self.why}"


def choose_reading(store: Store, sites: list[Site], resources: ResourcesConfig) -> Reading:
    """Shared where the sites fit Ray's object store, or ``resources.memory``; else streaming.

    Raises UserError when shared reading is demanded of what does not fit.
    """
    needed, (budget, what) = sum(map(store.training_bytes, sites)), _budget(resources)
    where = str(sites[0]) if len(sites) == 1 else f"{len(sites)} sites"
    figures = f"{needed / 1e9:.2f} GB at {where}, {what} {budget / 1e9:.2f} GB"
    if resources.reading == "streaming":
        return Reading("streaming", f"as asked for ({figures})")
    if needed <= budget:
        return Reading("shared", f"one copy in memory for all trials ({figures})")
    if resources.reading == "shared":
        raise UserError(
            f"resources.reading is 'shared', but that does not fit: {figures}; "
            "set it to streaming or auto, or use a machine with more memory"
        )
    return Reading("streaming", f"it does not fit in memory ({figures})")


def check_sites(store: Store, sites: list[Site]) -> None:
    """Check that the shards of ``sites`` are of the store's kind and unaltered.

    Raises UserError, naming the first that is not.
    """
    shards = [shard for site in sites for shard in store.entry(site).shards]
    for shard in shards:
        for split in TRAINING_SPLITS:
            store.segments(shard, split)  # seen from the footer alone
    store.check(*shards)


def open_site(reading: Reading, store: Store, site: Site) -> OpenSite:
    """Make the site ready for the workers.

    Raises UserError when a shard was altered, or rows are not finite.
    """
    check_sites(store, [site])
    shared = reading.how == "shared"
    opened = share_site(store, site) if shared else StreamedSite(store.path.absolute(), site)
    for split in TRAINING_SPLITS:
        if getattr(store.entry(site).rows, split):
            _refuse_non_finite(f"{store.path}: {site}, {split}", opened.rows(split))
    return opened


def fetched_site(site: OpenSite, uri: str) -> OpenSite:
    """The site as this node reads it, of a store that lives at ``uri``."""
    return replace(site, store=fetched(uri)) if isinstance(site, StreamedSite) else site


def _refuse_non_finite(where: str, rows: IndexedRows) -> None:
    """Raise UserError with count and place when rows hold NaN or infinite values."""
    bad, first, start = 0, None, 0
    for batch_BD in rows.batches():
        least, most = batch_BD.aminmax()
        if not (math.isfinite(least) and math.isfinite(most)):
            rows_bad = (~batch_BD.isfinite().all(dim=1)).nonzero().squeeze(1).tolist()
            first = start + rows_bad[0] if first is None else first
            bad += len(rows_bad)
        start += len(batch_BD)
    if bad:
        raise UserError(
            f"{where}: {bad} of {len(rows)} rows hold NaN or infinite values (first: row {first}); "
            "python -m raysae.store verify names the files; make the store again without such rows "
            "(source.non_finite=drop, or --non-finite drop on import)"
        )


def check_windows(store: Store, shuffle_rows: int, rows: int, workers: int) -> None:
    """Raise UserError when the windows of ``workers`` streaming at once do not fit in memory."""
    import ray

    window = min(shuffle_rows, rows) * store.row_bytes
    needed = WINDOWS_HELD * window * workers
    there = MEMORY_FRACTION * ray.cluster_resources().get("memory", 0.0)
    if needed > there:
        raise UserError(
            f"streaming holds {WINDOWS_HELD} windows of {window / 1e9:.2f} GB a trial, "
            f"{needed / 1e9:.2f} GB for {workers} trials at once, and {there / 1e9:.2f} GB may be "
            "taken; lower training.shuffle_rows or resources.max_concurrent"
        )


def memory_each(resources: ResourcesConfig, workers: int) -> float:
    """Bytes of rows that one of ``workers`` may hold: none where all is to be streamed."""
    import ray

    if resources.reading == "streaming":
        return 0.0
    return MEMORY_FRACTION * ray.cluster_resources().get("memory", 0.0) / workers


def _budget(resources: ResourcesConfig) -> tuple[int, str]:
    import ray

    if resources.memory is not None:
        return resources.memory, "resources.memory allows"
    there = ray.cluster_resources().get("object_store_memory", 0.0)
    return int(OBJECT_STORE_FRACTION * there), "Ray's object store may take"
