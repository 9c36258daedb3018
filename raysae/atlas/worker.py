"""The atlas's worker: trains groups of sites, from their checkpoints on, and commits each site."""

import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from raysae.activations import Site, open_store
from raysae.activations.streaming import rows_within
from raysae.cluster.worker import prepare_worker
from raysae.errors import UserError
from raysae.extraction.live_rows import LiveSite, ordered
from raysae.records.commit import commit, provenance
from raysae.records.members import Key, Members
from raysae.records.products import trained
from raysae.records.run_files import RunFiles
from raysae.redaction import traceback_of
from raysae.sae import SAEConfig
from raysae.storage.leftovers import remove_leftovers_of
from raysae.storage.trouble import reason_in_words
from raysae.training import TrainingConfig
from raysae.training.ensemble import Ensemble, Member
from raysae.training.lost_device import raise_if_lost
from raysae.training.rows import Splits

Record = dict[str, Any]
Sites = tuple[Site, ...]
"""A group of sites that one worker trains at the same time."""


@dataclass(frozen=True)
class SiteSettings:
    """The settings that all sites of an atlas share."""

    store: str
    """The store's digest."""
    seeds: tuple[int, ...]
    """The seeds of each site; the SAE of the first is in the site's folder."""
    sae: SAEConfig
    training: TrainingConfig
    parameters: Mapping[str, Any]
    """The parameters of the chosen trial."""

    def made(self, site: Site) -> dict[str, Any]:
        """What makes the SAE of a site."""
        return trained("site", self.store, [site], self.seeds, self.sae, self.training)

    def of(self, site: Site) -> Record:
        """The site, its settings and what makes its SAE, as its committed record has them."""
        return {**site.columns, "parameters": dict(self.parameters), "made": self.made(site)}


@dataclass(frozen=True)
class AtlasWork:
    """What an atlas worker receives when it starts."""

    files: RunFiles
    store: str
    """The store's folder or URI."""
    settings: SiteSettings
    memory: float
    """Bytes of rows that a worker may hold; a site with more is streamed."""
    checkpoint_seconds: float
    """Seconds between two checkpoints."""
    copy: bool = False
    """Whether a store at a URI is copied to the worker's node."""
    live: Mapping[Site, LiveSite] | None = None
    """How live rows are read; None of other stores."""
    pack: bool | None = None
    """Whether the sites of a group are trained as one packed program; None: only on GPUs."""


def import_worker() -> None:
    """Nothing: a process that runs this has imported what its work in an atlas needs."""


class AtlasWorker:
    """Trains groups of sites. It reads each site's rows itself, once, and commits each site on its own.

    Raises UserError when the store cannot be opened.
    """

    def __init__(self, work: AtlasWork):
        self.work, self.settings = work, work.settings
        self.device = prepare_worker()
        self.files = work.files.on_this_node()
        self.store = open_store(work.store, copy=work.copy)

    def hung_file(self, sites: Sites) -> Path:
        """Where the trace is written if the worker hangs while it trains ``sites``."""
        return self.files.atlas_site(sites[0]).with_suffix(".hung.txt")

    def do(
        self, sites: Sites, alive: Callable[[], None]
    ) -> Generator[dict[Site, Record], None, dict[Site, Record]]:
        """Train and commit the sites; returns the record of each, or why it failed (key ``failed``).

        Yields the sites' reports at each evaluation; ``alive`` is called after every batch.
        """
        started, records = (time.time(), time.monotonic()), self._committed(sites)
        trained = {site: self._members(site, len(sites)) for site in sites if site not in records}
        ensemble = Ensemble(
            [one for members in trained.values() for one in members.members.values()],
            self.device, pack=self.work.pack, checkpoint_seconds=self.work.checkpoint_seconds,
            on_saved=self._send_checkpoints, after_batch=lambda tokens: alive(),
            on_end=lambda member: _end_site(trained.values(), member),
        )  # fmt: skip
        for _ in ensemble.rounds(together=False):
            self.files.check_there()
            going = {site: one for site, one in trained.items() if site not in records}
            yield {site: _report(members) for site, members in going.items() if members.history}
            for site, members in going.items():
                if not members.active:
                    records[site] = self._ended(site, members, started)
        return records

    def _committed(self, sites: Sites) -> dict[Site, Record]:
        """The records of the sites that an earlier worker committed."""
        found = {
            site: self.files.committed(self.files.atlas_site(site), self.settings.made(site))
            for site in sites
        }
        return {site: record for site, record in found.items() if record is not None}

    def _members(self, site: Site, together: int) -> Members:
        """The trainings of a site, one a seed, on the same rows."""
        folder, settings = self.files.atlas_site(site), self.settings
        remove_leftovers_of(folder)  # of a killed worker
        rows, members = self._rows(site, together), dict[Key, Member]()
        for seed in settings.seeds:
            # live rows pass by, each seed at its own place in them
            own = self._rows(site, together) if self.work.live and members else rows
            members[site, seed] = Member(
                settings.sae, settings.training, own.train, own.validation, seed, own.truth
            )
        return Members(members, self.files.checkpoint(folder), apart=len(settings.seeds) > 1)

    def _rows(self, site: Site, together: int) -> Splits:
        if self.work.live is None:
            rows = rows_within(self.store, site, self.work.memory / together)
            return replace(rows, train=ordered(self.store, site, rows.train))
        live = self.work.live[site]
        return Splits(live.rows("train"), live.rows("validation"))

    def _send_checkpoints(self, saved: Sequence[Member]) -> None:
        several = len(self.settings.seeds) > 1
        places = [member.checkpoint for member in saved if member.checkpoint is not None]
        for place in dict.fromkeys(place.parent if several else place for place in places):
            self.files.send_checkpoint(place)

    def _ended(self, site: Site, members: Members, started: tuple[float, float]) -> Record:
        """Commit a site whose training has ended; its record, or why there is none."""
        folder = self.files.atlas_site(site)
        try:
            if members.failure is not None:
                raise members.failure
            source = provenance(self.store, site)
            members.release()  # before the last figures, which need memory of their own
            record = commit(
                self.files, members.first, folder, self.settings.of(site), source, members.history,
                started[0], seconds=time.monotonic() - started[1], metrics=members.final_metrics(),
                cost=members.cost if len(members.members) > 1 else {},
                beside=members.beside(lambda _: source),
            )  # fmt: skip
        except Exception as error:  # one failed site must not end the others
            raise_if_lost(error)
            return {"failed": failure_reason(self.files, folder, error)}
        members.discard_checkpoints()
        self.files.remove_checkpoint(self.files.checkpoint(folder))
        for member in members.members.values():
            member.release()
        return record


def failure_reason(files: RunFiles, folder: Path, error: Exception) -> str:
    """Why the SAE for ``folder`` was not committed; the traceback is written beside the folder."""
    if isinstance(error, UserError):
        return str(error).strip()
    reason = reason_in_words(error)
    file = folder.with_suffix(".failure.txt")
    hint = "" if "; " in reason else f"; its traceback is in {file.relative_to(files.path)}"
    try:
        files.write_text(file, traceback_of(error))
    except (OSError, UserError) as full:  # the disk may be full
        return f"{reason} (the traceback could not be written: {reason_in_words(full)})"
    return reason + hint


def _end_site(sites: Iterable[Members], ended: Member) -> None:
    """End the other seeds of a member's site: without one of them it has no figures."""
    for members in sites:
        members.end_with(ended)


def _report(members: Members) -> Record:
    begun = members.trainers
    return {**members.history[-1], "steps": members.first.steps if begun else 0}
