"""What is written of a live store before training: held-out rows of all shards, and the head's rows.

The pool makes it shard by shard, as it makes the shards of other stores.
"""

from typing import Any

from raysae.activations.live import HELD_OUT
from raysae.activations.manifest import LiveEntry, Manifest, SiteEntry
from raysae.console.board import console
from raysae.extraction.keeping import live_entry
from raysae.extraction.live import training_rows
from raysae.extraction.plan import ExtractionPlan
from raysae.extraction.sequences import TokenPlan, training_of
from raysae.extraction.shards import (
    ShardExtractor,
    ShardProgress,
    ToWrite,
    chosen_format,
    shard_format,
    written_shards,
)
from raysae.transformer.sequence import TokenSequence


class LiveShardExtractor(ShardExtractor):
    """A worker of the pool for live stores: of the first ``head`` shards it writes all rows, of the
    others the held-out ones, in files of their own. Raises UserError when the model cannot be loaded."""

    def __init__(self, plan: ExtractionPlan, head: int):
        super().__init__(plan)
        self.head = head
        self.capturer.only(plan.layers)

    def _rows(
        self, shard: int, sequences: list[TokenSequence], progress: ShardProgress
    ) -> list[ToWrite]:
        train = training_of(sequences, self.plan)
        training = {one.sequence for one in train}
        held_out = [one for one in sequences if one.sequence not in training]
        head = self._training(shard, train, progress) if train and shard < self.head else []
        return head + (self._held_out(held_out, progress) if held_out else [])

    def _training(
        self, shard: int, train: list[TokenSequence], progress: ShardProgress
    ) -> list[ToWrite]:
        plan, form = self.plan, chosen_format(self.plan)
        rows, left_out = training_rows(
            self.capturer, plan, shard, train, tuple(plan.sites), progress
        )
        return [
            ToWrite(site, rows[site], form, left_out=left_out[site])
            for site in plan.sites
            if len(rows[site])
        ]

    def _held_out(self, held_out: list[TokenSequence], progress: ShardProgress) -> list[ToWrite]:
        plan, form = self.plan, shard_format(self.plan)
        rows = self.capturer.rows(held_out, plan.positions, plan.source.used_patterns, progress)
        return [ToWrite(site, rows[site], form, HELD_OUT) for site in plan.sites if len(rows[site])]


def live_fields(tokens: TokenPlan, reports: list[dict[str, Any]]) -> dict[str, Any]:
    """The manifest's ``sites`` and ``live``, from the reports of all shards in order."""
    shards = tokens.live_shards
    sites: list[SiteEntry] = []
    for site, written in sorted(written_shards(reports).items()):
        planned = sum(shard.rows[str(site.position)] for shard in shards)
        sites.append(live_entry(site, written, planned))
    return {"sites": sites, "live": LiveEntry(head=tokens.head, shards=shards)}


def _dropped(manifest: Manifest) -> str | None:
    """A sentence on rows that were left out before training; None when there are none."""
    count = sum(entry.dropped for entry in manifest.sites)
    if not count:
        return None
    return f"  {count:,} rows were left out (source.non_finite=drop); in the head others take their place"


def print_written(plan: ExtractionPlan, tokens: TokenPlan, manifest: Manifest) -> None:
    """Print the bytes that a live extraction wrote beside those of a whole store."""
    written = sum(shard.bytes for entry in manifest.sites for shard in entry.shards)
    texts = sum(part.bytes for part in tokens.parts)
    whole = tokens.whole_bytes(plan) + texts
    console.print(
        f"  live: {(written + texts) / 1e6:,.1f} MB written (tokens {texts / 1e6:,.1f} MB, held-out rows "
        f"and the head {written / 1e6:,.1f} MB); a whole store takes {whole / 1e6:,.1f} MB, "
        f"{whole / max(written + texts, 1):,.1f} times as much"
    )
    if note := _dropped(manifest):
        console.print(note)
