"""A worker's part of an extraction: from a shard's sequences to the shard's file at every site."""

import importlib
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from raysae.activations.manifest import SEQUENCES_FOLDER, ShardEntry, SiteEntry
from raysae.activations.store_files import StoreFiles
from raysae.activations.writer import (
    PART,
    ShardFormat,
    SiteRows,
    WrittenShard,
    site_entry,
    write_shard,
)
from raysae.cluster.later import Later
from raysae.cluster.worker import prepare_worker
from raysae.errors import UserError
from raysae.extraction.plan import ExtractionPlan, model_spec
from raysae.extraction.writing import WritingThread, writes_beside
from raysae.sites import Site
from raysae.storage.files import open_own, read_json, remove_temporary, write_json
from raysae.storage.remote import pull, push
from raysae.transformer.loading import load_model
from raysae.transformer.sequence import TokenSequence, from_table

if TYPE_CHECKING:
    from raysae.transformer.capture import Capturer

REPORT_SECONDS = 0.5
"""Seconds between two updates of a shard's token count."""


def report_file(work: Path, shard: int) -> Path:
    """The report of a shard: its commit marker. It lists the shard's files and is written after them."""
    return work / f"shard-{shard:05d}.json"


def tokens_file(work: Path, shard: int) -> Path:
    """The file with the number of tokens of a shard that have run so far."""
    return work / f"shard-{shard:05d}.tokens"


def committed_shard(
    plan: ExtractionPlan, shard: int, files: StoreFiles | None = None
) -> dict[str, Any] | None:
    """A shard's report; None unless the report is sound and all the shard's files exist.

    ``files`` are the store's files if they were looked at after the shard was made.
    """
    file = report_file(plan.work, shard)
    if not file.is_file() and not pull(file):  # another node can have made the shard
        return None
    return sound_report(files or plan.files(), file)


def sound_report(files: StoreFiles, file: Path) -> dict[str, Any] | None:
    """A shard's report; None unless it is sound and all its files exist in the store."""
    if not file.is_file():
        return None
    try:
        report = read_json(file)
        whole = all(_is_there(files, site) for site in report["sites"])
        whole = whole and isinstance(report["weights_sha256"], str)
    except (UserError, KeyError, TypeError, ValueError):  # damaged: the shard is made again
        return None
    return report if whole else None


def _is_there(store: StoreFiles, site: dict[str, Any]) -> bool:
    """Whether a shard's file at a site is there as its report says. Raises KeyError, TypeError or
    ValueError when the report does not say it."""
    entry = ShardEntry.model_validate(site["entry"])
    _site_of(site)
    float(site["square_sum"]), int(site["dropped"]), list(site["sum"])
    int(site.get("too_large", 0))
    path = store.file(entry.file)
    return path.is_file() and path.size() == entry.bytes


def _site_of(row: dict[str, Any]) -> Site:
    return Site(row["layer"], row["position"], row.get("hookpoint"))


def site_entries(reports: list[dict[str, Any]]) -> list[SiteEntry]:
    """The manifest entries of all sites, from the reports of all shards in order."""
    return [site_entry(site, written) for site, written in sorted(written_shards(reports).items())]


def written_shards(reports: list[dict[str, Any]]) -> dict[Site, list[WrittenShard]]:
    """The shards of every site, from reports in their order."""
    shards: dict[Site, list[WrittenShard]] = {}
    for report in reports:
        for row in report["sites"]:
            written = WrittenShard(
                ShardEntry.model_validate(row["entry"]), np.array(row["sum"]), row["square_sum"],
                row["dropped"], row.get("too_large", 0),
            )  # fmt: skip
            shards.setdefault(_site_of(row), []).append(written)
    return shards


def import_transformers() -> None:
    """Import what a transformer needs, for work that comes later in this process."""
    for name in ("transformers.modeling_utils", "transformers.models.auto.modeling_auto"):
        with suppress(ImportError):  # of another release; loading a model says what is missing
            importlib.import_module(name)


@dataclass(frozen=True)
class ToWrite:
    """What is written of a shard at one site."""

    site: Site
    rows: SiteRows
    form: ShardFormat
    prefix: str = PART
    """How the file's name begins."""
    left_out: int = 0
    """Rows that others took the place of."""

    def write(self, store: Path, shard: int) -> dict[str, Any]:
        """Write the file; returns its record for the report."""
        written = write_shard(store, self.site, shard, self.rows, self.form, self.prefix)
        return record_of(self.site, written, self.left_out)


class ShardExtractor:
    """A worker of the pool. It holds the transformer, and makes a shard's files from its sequences.

    On a GPU a thread writes them while the transformer reads the next shard. Raises UserError when the
    model cannot be loaded.
    """

    def __init__(self, plan: ExtractionPlan):
        self.plan = plan = plan.on_this_node()
        if plan.uri is not None:  # this node's copy, and what a killed worker left in it
            plan.work.mkdir(parents=True, exist_ok=True)
            remove_temporary(plan.folder)
        self.files = plan.files()
        device = prepare_worker()
        self.capturer, self.weights_sha256 = load_capturer(plan, device)
        self.thread = WritingThread() if writes_beside(device) else None

    def hung_file(self, shard: int) -> Path:
        """The file for the worker's stack traces when the shard hangs."""
        return self.plan.work / f"shard-{shard:05d}.hung.txt"

    def do(self, shard: int, alive: Callable[[], None]) -> Later[None] | None:
        """Extract and commit the shard with number ``shard``, or hand it over to be committed; call
        ``alive`` after every batch.

        Raises UserError when activations cannot be stored.
        """
        started, sequences = time.monotonic(), read_part(self.files, shard)
        progress = ShardProgress(self.plan.work, shard, alive)
        waiting = deque(self._rows(shard, sequences, progress))
        commit = partial(self._commit, shard, sum(map(len, sequences)), waiting, started)
        if self.thread is not None:
            return Later(self.thread.begin(commit))
        commit()
        return None

    def _rows(
        self, shard: int, sequences: list[TokenSequence], progress: "ShardProgress"
    ) -> list[ToWrite]:
        """What is to be written of the shard, in the order of the report."""
        plan, form = self.plan, shard_format(self.plan)
        rows = self.capturer.rows(sequences, plan.positions, plan.source.used_patterns, progress)
        return [ToWrite(site, rows[site], form) for site in plan.sites if len(rows[site])]

    def _commit(self, shard: int, tokens: int, waiting: deque[ToWrite], started: float) -> None:
        """Write the shard's files, then its report. What is written leaves ``waiting`` and memory."""
        plan, sites = self.plan, []
        while waiting:
            sites.append(waiting.popleft().write(plan.folder, shard))
        report = {
            "weights_sha256": self.weights_sha256,
            "tokens": tokens,
            "sites": sites,
            "seconds": time.monotonic() - started,
        }
        write_json(report_file(plan.work, shard), report)
        push(report_file(plan.work, shard))
        tokens_file(plan.work, shard).unlink(missing_ok=True)


def load_capturer(plan: ExtractionPlan, device: str) -> "tuple[Capturer, str]":
    """The plan's transformer, ready to capture its layers, and the hash of its weights. Blocks above
    the highest of the layers do not run.

    Raises UserError when it cannot be loaded or read.
    """
    from raysae.transformer.capture import Capturer, weights_hash

    spec = replace(model_spec(plan.readable), shuffled=plan.shuffled)
    source, model = plan.source, load_model(spec)
    sha256 = weights_hash(model)
    capturer = Capturer(
        model.to(device), hookpoint=source.hookpoints, layers=plan.layers, dtype=source.dtype
    )
    return capturer.only(plan.layers), sha256


def read_part(files: StoreFiles, shard: int) -> list[TokenSequence]:
    """The sequences of a shard."""
    with files.file(f"{SEQUENCES_FOLDER}/part-{shard:05d}.parquet").parquet() as file:
        return from_table(file.read())


def shard_format(plan: ExtractionPlan) -> ShardFormat:
    """How the plan's shards are written."""
    source = plan.source
    split = {"validation": source.validation, "test": source.test}
    return ShardFormat(source.dtype, split, plan.seed, source.non_finite, source.max_norm_ratio)


def chosen_format(plan: ExtractionPlan) -> ShardFormat:
    """How training rows of a live store are written: they were chosen before, so none is left out."""
    source = plan.source
    split = {"validation": source.validation, "test": source.test}
    return ShardFormat(source.dtype, split, plan.seed)


def record_of(site: Site, written: WrittenShard, left_out: int = 0) -> dict[str, Any]:
    """A written shard's record in a report; ``left_out`` are rows that others took the place of."""
    return {
        **site.columns,
        "entry": written.entry.model_dump(),
        "sum": written.sum_D.tolist(),
        "square_sum": written.square_sum,
        "dropped": written.dropped + left_out,
        "too_large": written.too_large,
    }


class ShardProgress:
    """Writes a shard's token count to the file that the driver reads, at most every half second."""

    def __init__(self, work: Path, shard: int, alive: Callable[[], None]):
        self.file, self.alive = tokens_file(work, shard), alive
        self.tokens, self.written = 0, 0.0

    def __call__(self, tokens: int) -> None:
        self.alive()
        self.tokens += tokens
        if time.monotonic() - self.written > REPORT_SECONDS:
            self.written = time.monotonic()
            with open_own(self.file) as file:
                file.write(str(self.tokens))  # it only grows: nothing of an earlier number remains
                file.truncate()
