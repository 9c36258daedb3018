"""How long an extraction will take: its first texts are tokenized, and run and written as one shard."""

import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

from raysae.activations.writer import write_sequences
from raysae.cluster.later import finished
from raysae.cluster.placement import Placement
from raysae.extraction.plan import ExtractionPlan
from raysae.pipeline.calibration import WAIT_SECONDS
from raysae.redaction import redacted_errors
from raysae.transformer.sequence import to_table

if TYPE_CHECKING:
    from raysae.transformer.sequence import TokenSequence

TEXTS = 256
"""Texts that are tokenized, at most."""
WORKERS = 4
"""Workers that are measured at the same time, at most."""
END_SECONDS = 0.5
"""What the driver takes beside the texts: checks, the manifest, the end of the workers."""


@dataclass(frozen=True)
class ExtractionSpeed:
    """How fast an extraction is, from its first texts."""

    tokenizing: float
    """Seconds to tokenize all texts."""
    start: float
    """Seconds in which the workers start."""
    tokens: float
    """Tokens of all texts."""
    rows: float
    """Rows of all positions at one layer."""
    tokens_per_second: float
    """Of the workers together."""

    def seconds(self, share: float = 1.0) -> float:
        """Seconds of the extraction of ``share`` of the tokens."""
        passed = share * self.tokens / self.tokens_per_second
        return self.tokenizing + self.start + passed + END_SECONDS


def extraction_seconds(plan: ExtractionPlan, placement: Placement) -> float | None:
    """Seconds of the extraction on the connected Ray; None as ``measure_extraction`` says."""
    speed = measure_extraction(plan, placement)
    return None if speed is None else speed.seconds()


def measure_extraction(plan: ExtractionPlan, placement: Placement) -> ExtractionSpeed | None:
    """Measure the extraction on the connected Ray.

    None when the number of texts is not known, or no worker is free to measure it.
    """
    import ray

    from raysae.extraction.sequences import first_sequences

    texts = plan.source.sequences
    if texts is None:
        return None
    began = time.monotonic()
    sequences = first_sequences(plan, min(TEXTS, texts))
    tokenizing = (time.monotonic() - began) * texts / min(TEXTS, texts)
    tokens = sum(map(len, sequences)) * texts / min(TEXTS, texts)
    names = plan.source.used_patterns
    rows = sum(len(one.places(p, names)) for one in sequences for p in plan.positions)
    shard = _first_shard(sequences)
    began, workers = time.monotonic(), min(placement.workers, WORKERS)
    actors = [
        ray.remote(_Extractor).options(**placement.ray_options).remote(plan, shard)
        for _ in range(workers)
    ]
    try:
        ray.get([actor.ready.remote() for actor in actors], timeout=WAIT_SECONDS)
        start = time.monotonic() - began
        found = ray.get([actor.measure.remote() for actor in actors], timeout=WAIT_SECONDS)
    except (ray.exceptions.GetTimeoutError, ray.exceptions.RayError):
        return None
    finally:
        for actor in actors:
            ray.kill(actor)
    shards = tokens / sum(map(len, shard))
    speed = sum(map(len, shard)) / fmean(found) * min(placement.workers, max(shards, 1))
    return ExtractionSpeed(tokenizing, start, tokens, rows * texts / min(TEXTS, texts), speed)


def _first_shard(sequences: "list[TokenSequence]") -> "list[TokenSequence]":
    """The first sequences, as many as a small shard holds."""
    from raysae.extraction.sequences import SHARD_TOKENS

    shard: list[TokenSequence] = []
    while len(shard) < len(sequences) and sum(map(len, shard)) < SHARD_TOKENS:
        shard.append(sequences[len(shard)])
    return shard


class _Extractor:
    """A worker that extracts one shard to a temporary folder."""

    def __init__(self, plan: ExtractionPlan, shard: "list[TokenSequence]"):
        from raysae.extraction.shards import ShardExtractor

        self.folder = tempfile.TemporaryDirectory()
        there = replace(plan, folder=Path(self.folder.name) / "store")
        there.work.mkdir(parents=True)
        write_sequences(there.folder, 0, to_table(shard))
        with redacted_errors():  # Ray writes what is raised here to its logs
            self.extractor = ShardExtractor(there)

    def ready(self) -> None:
        """Return when the model is loaded."""

    def measure(self) -> float:
        """Seconds of a shard, after a first one, which takes longer."""
        with redacted_errors():
            finished(self.extractor.do(0, lambda: None))
        began = time.perf_counter()
        finished(self.extractor.do(0, lambda: None))
        passed = time.perf_counter() - began
        self.folder.cleanup()
        return passed
