"""Beginning to scan: what must fit in memory, the service, and the sites that the workers get."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from raysae.activations.store import Store
from raysae.cluster.placement import scan_cpus
from raysae.cluster.reading import WINDOWS_HELD, budget_of
from raysae.cluster.scan.rows import VALIDATION, ScannedSite
from raysae.cluster.scan.service import ScanSettings, start_service, threads_of
from raysae.cluster.sharing import share_site
from raysae.config import Recipe, ResourcesConfig
from raysae.errors import UserError
from raysae.sites import Site

LARGEST_PIECE = 64 * 2**20
"""Bytes of a piece, at most: Ray moves blocks of this size at full speed."""
PIECES_HELD = 16
"""Pieces that fit in memory, at least, where memory is small."""
SETTLE_SECONDS = 30.0
"""Seconds that a service may take to go on to another stage; else a new one is started."""
HELD_OUT_FRACTION = 0.5
"""The fraction of the memory that held-out rows may take, to lie there all the time."""


@dataclass(frozen=True)
class ScanPlan:
    """How memory is divided: held-out rows that stay there, and what the scans may hold."""

    held_out: tuple[Site, ...]
    """The sites whose held-out rows stay in memory; those of the others are scanned."""
    memory: int
    """Bytes that all scans together may hold."""

    @property
    def piece_bytes(self) -> int:
        """Bytes of a piece, at most."""
        return max(min(LARGEST_PIECE, self.memory // PIECES_HELD), 1)


def divide(store: Store, sites: Sequence[Site], resources: ResourcesConfig) -> ScanPlan:
    """Divide the memory that rows may take between held-out rows and scans."""
    budget, _ = budget_of(resources)
    held_out, kept = [], 0
    for site in sites:
        size = store.entry(site).rows.validation * store.row_bytes
        if kept + size <= HELD_OUT_FRACTION * budget:
            held_out.append(site)
            kept += size
    return ScanPlan(tuple(held_out), budget - kept)


def plan_scans(store: Store, sites: list[Site], recipe: Recipe) -> ScanPlan:
    """Divide the memory that rows may take, for scans of a store.

    Raises UserError when the shuffle windows do not fit: readers of one scan share them, but each site
    and seed has its own.
    """
    budget, what = budget_of(recipe.resources)
    plan = divide(store, sites, recipe.resources)
    kept = budget - plan.memory
    scans = len(sites) * recipe.sweep.seeds_per_trial
    rows = max(store.entry(site).rows.train for site in sites)
    window = min(recipe.training.shuffle_rows, rows) * store.row_bytes
    needed = WINDOWS_HELD * window * scans
    if needed > budget - kept:
        raise UserError(
            f"a scan holds {WINDOWS_HELD} shuffle windows of {window / 1e9:.3f} GB, which makes "
            f"{needed / 1e9:.3f} GB for {scans} sites and seeds, but {what} {budget / 1e9:.3f} GB, and "
            f"held-out rows take {kept / 1e9:.3f} GB of that; lower training.shuffle_rows, or raise "
            "resources.memory"
        )
    return plan


class _Kept:
    """A service that one stage of a run is through with, for the next one."""

    def __init__(self) -> None:
        self.wanted = False
        self.service: tuple[Any, int] | None = None
        """The actor's handle, and how many calls it answers at the same time."""

    def taken(self, settings: ScanSettings) -> Any:
        """The service, with these settings; None when there is none that answers as many calls."""
        import ray

        kept, self.service = self.service, None
        if kept is None:
            return None
        if kept[1] >= threads_of(settings):
            with suppress(ray.exceptions.RayError):
                ray.get(kept[0].settle.remote(settings), timeout=SETTLE_SECONDS)
                return kept[0]
        ray.kill(kept[0])
        return None

    def give(self, service: Any, settings: ScanSettings) -> None:
        """Keep the service, if a run wants that; else end it."""
        import ray

        if self.wanted and self.service is None:
            self.service = service, threads_of(settings)
        else:
            ray.kill(service)

    def end(self) -> None:
        """End the service that is kept, and keep no other."""
        import ray

        self.wanted = False
        kept, self.service = self.service, None
        if kept is not None:
            ray.kill(kept[0])


_kept = _Kept()


@contextmanager
def one_service() -> Iterator[Callable[[], None]]:
    """Inside the block the service of one stage goes on to the next: it takes seconds to start.

    The block receives a function that ends it before the block ends.
    """
    _kept.wanted = True
    try:
        yield _kept.end
    finally:
        _kept.end()


@contextmanager
def serving(
    memory: int, workers: int, each: int, patience: float | None,
    live_readers: int | None = None,
) -> Iterator[Any]:  # fmt: skip
    """The service for ``workers`` of up to ``each`` readers, while the block runs; see ``ScanSettings``.

    A scan has a reader in each of the workers, unless the service is told otherwise. A scan of live rows
    has ``live_readers`` in all; those in one worker read at the same time.
    """
    settings = ScanSettings(
        memory, scan_cpus(), workers * each, workers if live_readers is None else live_readers,
        1 if live_readers is None else each, patience,
    )  # fmt: skip
    service = _kept.taken(settings) or start_service(settings)
    try:
        yield service
    finally:
        _kept.give(service, settings)


def scans_in_words(service: Any) -> str:
    """How much the scans have read, as a line for people."""
    import ray

    counts = ray.get(service.counts.remote())
    return (
        f"Scan: {counts['bytes'] / 1e9:.3f} GB read in {counts['scans']} scans (looks at the rows before "
        f"training are counted too); at most {counts['most_held'] / 1e9:.3f} GB held"
    )


def scanned_sites(
    store: Store, sites: list[Site], plan: ScanPlan, service: Any, cyclic: bool = False
) -> dict[Site, ScannedSite]:
    """The sites as workers read them; held-out rows that stay in memory are put there, once.

    ``cyclic``: whether an epoch may begin where a running scan is.
    """
    return {
        site: ScannedSite(
            str(store.opened_by), site, service, plan.piece_bytes,
            share_site(store, site, splits=(VALIDATION,)) if site in plan.held_out else None, cyclic,
        )
        for site in sites
    }  # fmt: skip
