"""Running an extraction: the shards that are not there yet, on the pool.

A shard counts once its report is written, last of its files; the store once its manifest is. Between
the two nothing is lost: the same command goes on with the shards that are missing.
"""

import shutil
from collections.abc import Iterator
from contextlib import closing, contextmanager

from raysae.activations.manifest import FORMAT_VERSION, Manifest
from raysae.activations.store import Store, open_store
from raysae.cluster.placement import Placement
from raysae.cluster.pool import Work, map_committed
from raysae.config import ResourcesConfig
from raysae.errors import UserError
from raysae.extraction.plan import IDENTITY_FILE, REFUSED_FILE, ExtractionPlan
from raysae.extraction.progress import ExtractionProgress
from raysae.extraction.sequences import TokenPlan, write_tokens
from raysae.extraction.shards import (
    ShardExtractor,
    committed_shard,
    site_entries,
)
from raysae.storage.files import (
    locked,
    read_json,
    remove_folder,
    remove_temporary,
    write_json,
    write_text,
)

LOCK_FILE = "lock"


def extract(plan: ExtractionPlan, placement: Placement, resources: ResourcesConfig) -> Store:
    """Run the extraction on the connected Ray, or go on with one that was interrupted; the store.
    ``resources`` say how often a shard is tried, and how long one may hang.

    Raises UserError on unusable texts or activations, or when another process is at it; what was
    done so far stays, and does not count as a store.
    """
    plan.work.mkdir(parents=True, exist_ok=True)
    with locked(plan.work / LOCK_FILE, "this extraction", "name another folder with store=FOLDER"):
        _take_up(plan)
        progress = ExtractionProgress(plan)
        with _nothing_left_without_texts(plan):
            tokens = write_tokens(plan, progress.reading)
        _refuse_full_disk(plan, tokens)
        with progress.watching(tokens):
            _run(plan, tokens, placement, resources)
        _manifest(plan, tokens).write(plan.folder)
        remove_temporary(plan.folder)
    remove_folder(plan.work)
    return open_store(plan.folder)


def _take_up(plan: ExtractionPlan) -> None:
    """Go on with what this plan has done here; what another one began (and may be lost) is removed."""
    remove_temporary(plan.folder)
    identity = plan.work / IDENTITY_FILE
    if identity.exists() and plan.differences(read_json(identity)):
        _empty(plan)
    (plan.work / REFUSED_FILE).unlink(missing_ok=True)
    write_json(identity, plan.identity())


def _empty(plan: ExtractionPlan) -> None:
    """Remove all but the lock that we hold."""
    for path in [*plan.folder.iterdir(), *plan.work.iterdir()]:
        if path.is_dir() and path != plan.work:
            remove_folder(path)
        elif path.is_file() and path.name != LOCK_FILE:
            path.unlink()


@contextmanager
def _nothing_left_without_texts(plan: ExtractionPlan) -> Iterator[None]:
    """Remove the folder again when the texts are refused."""
    try:
        yield
    except UserError:
        remove_folder(plan.folder)
        raise


def _refuse_full_disk(plan: ExtractionPlan, tokens: TokenPlan) -> None:
    there = sum(f.stat().st_size for f in plan.folder.glob("layer=*/position=*/*.parquet"))
    needed = tokens.bytes(plan) - there
    free = shutil.disk_usage(plan.folder).free
    if needed > free:
        raise UserError(
            f"{plan.folder}: {needed / 1e9:.2f} GB are still to be written, the disk has "
            f"{free / 1e9:.2f} GB free; set a limit (source.max_bytes), read fewer layers or "
            "positions, or name another folder"
        )


def _run(
    plan: ExtractionPlan, tokens: TokenPlan, placement: Placement, resources: ResourcesConfig
) -> None:
    """Extract every shard that is not committed yet. Raises UserError when one could not be."""
    shards = map_committed(
        range(len(tokens.parts)), Work(ShardExtractor, (plan,)),
        committed=lambda shard: committed_shard(plan, shard), placement=placement,
        retries=resources.retries, hang_seconds=resources.hang_seconds,
    )  # fmt: skip
    with closing(shards):
        failed = {shard: outcome for shard, outcome in shards if outcome.failed is not None}
    if not failed:
        return
    for _, outcome in sorted(failed.items()):
        if outcome.refused:
            write_text(plan.work / REFUSED_FILE, str(outcome.failed))
            raise UserError(str(outcome.failed))
    first = min(failed)
    raise UserError(
        f"{plan.folder}: {len(failed)} of {len(tokens.parts)} shards could not be extracted "
        f"(shard {first}: {failed[first].failed}); the same command goes on with those that are missing"
    )


def _manifest(plan: ExtractionPlan, tokens: TokenPlan) -> Manifest:
    source = plan.source
    reports = [committed_shard(plan, number) for number in range(len(tokens.parts))]
    done = [report for report in reports if report is not None]
    assert len(done) == len(reports), "every shard was extracted"
    weights = {report["weights_sha256"] for report in done}
    if len(weights) > 1:
        raise UserError(
            f"source.model {source.model!r}: its weights changed between two goes at this "
            f"extraction; remove {plan.folder} and extract it again"
        )
    return Manifest(
        format_version=FORMAT_VERSION,
        provenance="model",
        source=plan.identity(),
        model={
            "id": source.model,
            "revision": source.revision,
            "architecture": plan.architecture,
            "layers": plan.model_layers,
            "weights_sha256": weights.pop(),
            "tokenizer_sha256": tokens.tokenizer_sha256,
        },
        dataset={"id": source.dataset, "texts_sha256": tokens.texts_sha256, **tokens.counts},
        hookpoint=source.hookpoint,
        dtype=source.dtype,
        d_in=plan.d_in,
        context_length=source.context_length,
        patterns=source.used_patterns,
        split={"validation": source.validation, "test": source.test},
        sequences=tokens.parts,
        sites=site_entries(done),
    )
