"""The atlas's worker: trains groups of sites, from their checkpoints on, and commits each site."""

import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from raysae.activations import Site, open_store
from raysae.activations.streaming import rows_within
from raysae.cluster.worker import prepare_worker
from raysae.errors import UserError
from raysae.extraction.live_rows import LiveSite, ordered
from raysae.records.commit import commit, provenance
from raysae.records.products import trained
from raysae.records.run_files import RunFiles
from raysae.redaction import traceback_of
from raysae.sae import SAEConfig
from raysae.storage.leftovers import remove_leftovers_of
from raysae.storage.trouble import reason_in_words
from raysae.training import TrainingConfig
from raysae.training.ensemble import Ensemble, Member
from raysae.training.rows import Splits

Record = dict[str, Any]
Sites = tuple[Site, ...]
"""A group of sites that one worker trains at the same time."""


@dataclass(frozen=True)
class SiteSettings:
    """The settings that all sites of an atlas share."""

    store: str
    """The store's digest."""
    seed: int
    sae: SAEConfig
    training: TrainingConfig
    parameters: Mapping[str, Any]
    """The parameters of the chosen trial."""

    def made(self, site: Site) -> dict[str, Any]:
        """What makes the SAE of a site."""
        return trained("site", self.store, [site], [self.seed], self.sae, self.training)

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
        members = {site: self._member(site, len(sites)) for site in sites if site not in records}
        ensemble = Ensemble(
            list(members.values()), self.device, pack=self.work.pack,
            checkpoint_seconds=self.work.checkpoint_seconds, on_saved=self._send_checkpoints,
            after_batch=lambda tokens: alive(),
        )  # fmt: skip
        for _ in ensemble.rounds():
            self.files.check_there()
            yield {site: _report(member) for site, member in members.items() if member.history}
            for site, member in members.items():
                if site not in records and not member.active:
                    records[site] = self._ended(site, member, started)
        return records

    def _committed(self, sites: Sites) -> dict[Site, Record]:
        """The records of the sites that an earlier worker committed."""
        found = {
            site: self.files.committed(self.files.atlas_site(site), self.settings.made(site))
            for site in sites
        }
        return {site: record for site, record in found.items() if record is not None}

    def _member(self, site: Site, together: int) -> Member:
        folder = self.files.atlas_site(site)
        remove_leftovers_of(folder)  # of a killed worker
        rows = self._rows(site, together)
        return Member(
            self.settings.sae, self.settings.training, rows.train, rows.validation,
            self.settings.seed, rows.truth, checkpoint=self.files.checkpoint(folder),
        )  # fmt: skip

    def _rows(self, site: Site, together: int) -> Splits:
        if self.work.live is None:
            rows = rows_within(self.store, site, self.work.memory / together)
            return replace(rows, train=ordered(self.store, site, rows.train))
        live = self.work.live[site]
        return Splits(live.rows("train"), live.rows("validation"))

    def _send_checkpoints(self, saved: Sequence[Member]) -> None:
        for member in saved:
            assert member.checkpoint is not None
            self.files.send_checkpoint(member.checkpoint)

    def _ended(self, site: Site, member: Member, started: tuple[float, float]) -> Record:
        """Commit a site whose training has ended; its record, or why there is none."""
        folder = self.files.atlas_site(site)
        try:
            if member.failure is not None:
                raise member.failure
            record = commit(
                self.files, member.trainer, folder, self.settings.of(site),
                provenance(self.store, site), member.history, started[0],
                seconds=time.monotonic() - started[1],
            )  # fmt: skip
        except Exception as error:  # one failed site must not end the others
            return {"failed": failure_reason(self.files, folder, error)}
        member.discard_checkpoint()
        self.files.remove_checkpoint(self.files.checkpoint(folder))
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


def _report(member: Member) -> Record:
    return {**member.history[-1], "steps": member.trainer.steps if member.begun else 0}
