"""Running an extraction: the pool makes the shards that are missing.

A shard is committed when its report is written, after all its files; the store is complete when its
manifest is written. After an interruption, the same command continues with the missing shards.
"""

import shutil
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from typing import Any

from raysae.activations.manifest import (
    FORMAT_VERSION,
    HOOKPOINT_SEPARATOR,
    HOOKPOINTS_VERSION,
    MANIFEST_FILE,
    SEQUENCES_FOLDER,
    Manifest,
)
from raysae.activations.store import Store
from raysae.activations.store_files import StoreFiles
from raysae.cluster.placement import Placement
from raysae.cluster.pool import Work, map_committed, run_in_processes
from raysae.config import ResourcesConfig
from raysae.errors import UnfinishedError, UserError
from raysae.extraction.live import READS_TEXTS
from raysae.extraction.live_shards import LiveShardExtractor, live_fields, print_written
from raysae.extraction.plan import (
    IDENTITY_FILE,
    REFUSED_FILE,
    SPLIT_BY,
    WORK_FOLDER,
    ExtractionPlan,
    read_identity,
)
from raysae.extraction.progress import ExtractionProgress
from raysae.extraction.sequences import TokenPlan, write_tokens
from raysae.extraction.shards import (
    ShardExtractor,
    committed_shard,
    import_transformers,
    report_file,
    site_entries,
)
from raysae.sites import site_folders
from raysae.storage.files import (
    locked,
    refuse_links_outside,
    remove_folder,
    remove_temporary,
    write_json,
    write_text,
)
from raysae.storage.remote import claimed, discard, hand_over, pull, push, remove
from raysae.storage.trouble import in_words, number_of

LOCK_FILE = "lock"
TEXTS_EACH = 256
"""Texts that are worth a worker of their own before their tokens are counted."""
MENDED = "once that is mended, the same command continues with the missing shards"


def extract(plan: ExtractionPlan, placement: Placement, resources: ResourcesConfig) -> Store:
    """Run the extraction on the connected Ray, or continue an interrupted one. Returns the store.

    ``resources`` gives the number of retries of a shard, and the seconds after which it counts as hung.
    Raises UserError on unusable texts or activations, when the disk is too small, or when another process
    runs the same extraction. Committed shards then remain, but they do not count as a store.
    """
    plan = plan.on_this_node()
    refuse_links_outside(plan.folder, "the store")
    plan.work.mkdir(parents=True, exist_ok=True)
    otherwise = "name another folder with store=FOLDER"
    with (
        locked(plan.work / LOCK_FILE, "this extraction", otherwise),
        claimed(plan.folder, "this extraction", otherwise),
    ):
        _prepare_folder(plan)
        progress = ExtractionProgress(plan)
        with _removed_on_refusal(plan):
            tokens = write_tokens(plan, progress.reading)
        _refuse_full_disk(plan, tokens)
        with _unfinished(plan):
            with progress.watching(tokens):
                _run(plan, tokens, placement, resources)
            manifest = _manifest(plan, tokens)
            manifest.write(plan.folder)
            hand_over(plan.folder / MANIFEST_FILE)  # of a store at a URI: the last of its files
            remove_temporary(plan.folder)
            discard(plan.work)
            if plan.uri is not None:
                _empty(plan)
    remove_folder(plan.work)
    if plan.source.live:
        print_written(plan, tokens, manifest)
    return plan.opened()


def start_importing(plan: ExtractionPlan, placement: Placement) -> None:
    """Let an extraction's processes import the libraries of models while this one reads the texts."""
    texts = plan.source.sequences
    most = placement.workers if texts is None else -(-texts // TEXTS_EACH)
    run_in_processes(import_transformers, placement, most, _environment(plan))


def _environment(plan: ExtractionPlan) -> Mapping[str, str] | None:
    return READS_TEXTS if plan.source.live else None


@contextmanager
def _unfinished(plan: ExtractionPlan) -> Iterator[None]:
    """Raise UnfinishedError for what the block raises: shards may have been made by then."""
    try:
        yield
    except UserError as error:
        raise UnfinishedError(_gone(plan) or str(error)) from error
    except OSError as error:
        if number_of(error) is None:
            raise
        raise UnfinishedError(_gone(plan) or f"{in_words(error)}; {MENDED}") from error


def _gone(plan: ExtractionPlan) -> str:
    """A message when the store's folder was deleted; empty when it is there."""
    if (plan.work / IDENTITY_FILE).is_file():
        return ""
    return (
        f"{plan.place}: the folder was deleted, moved or emptied during the extraction; put it back to "
        "keep its shards, or give the command again to begin anew"
    )


def _prepare_folder(plan: ExtractionPlan) -> None:
    """Use the files of an earlier attempt at this plan; remove those of another, unfinished plan."""
    remove_temporary(plan.folder)
    if plan.uri is not None:  # what is there counts, as another node may have worked since
        _empty(plan)
        pull(plan.work)
    identity = plan.work / IDENTITY_FILE
    if identity.exists() and plan.differences(read_identity(plan)):
        _empty(plan)
        if plan.uri is not None:
            _empty_there(plan)
    remove(plan.work / REFUSED_FILE)
    write_json(identity, plan.identity())
    push(identity)


def _empty(plan: ExtractionPlan) -> None:
    """Remove everything here except hidden files and the lock that this process holds."""
    for path in [*plan.folder.iterdir(), *plan.work.iterdir()]:
        if path.is_dir() and path != plan.work:
            remove_folder(path)
        elif path.is_file() and path.name != LOCK_FILE and not path.name.startswith("."):
            path.unlink()


def _empty_there(plan: ExtractionPlan) -> None:
    """Remove, at the URI, what an extraction writes."""
    for name in {name.partition("/")[0] for name in plan.files().names()}:
        if name in (WORK_FOLDER, SEQUENCES_FOLDER) or name.startswith(("layer=", "hookpoint=")):
            discard(plan.folder / name)


@contextmanager
def _removed_on_refusal(plan: ExtractionPlan) -> Iterator[None]:
    """Remove the store's folder when the block refuses the texts, unless it holds shards already."""
    try:
        yield
    except UserError:
        if not any(plan.work.glob("shard-*.json")):
            if plan.uri is not None:
                _empty_there(plan)
                _empty(plan)
            else:
                remove_folder(plan.folder)
        raise


def _refuse_full_disk(plan: ExtractionPlan, tokens: TokenPlan) -> None:
    if plan.uri is not None:  # here lie only the shards in work
        return
    written = sum(f.stat().st_size for f in site_folders(plan.folder, "*.parquet"))
    needed = tokens.bytes(plan) - written
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
    """Extract every shard that is not committed yet. Raises UserError when a shard fails."""
    live = plan.source.live
    work = Work(LiveShardExtractor, (plan, tokens.head)) if live else Work(ShardExtractor, (plan,))
    seen: list[StoreFiles] = [plan.files()]

    def committed(shard: int) -> dict[str, Any] | None:
        report = committed_shard(plan, shard, seen[0])
        if report is None and report_file(plan.work, shard).is_file():  # made since the last look
            seen[0] = plan.files()
            report = committed_shard(plan, shard, seen[0])
        return report

    shards = map_committed(
        range(len(tokens.parts)), work, committed=committed, placement=placement,
        retries=resources.retries, hang_seconds=resources.hang_seconds,
        label=lambda shard: f"extract shard {shard}", environment=_environment(plan),
    )  # fmt: skip
    failed = {}
    with closing(shards):
        for shard, outcome in shards:
            if outcome.failed is None:
                pull(report_file(plan.work, shard))  # for the progress; of a store at a URI
            else:
                failed[shard] = outcome
    if not failed:
        return
    for _, outcome in sorted(failed.items()):
        if outcome.refused:
            write_text(plan.work / REFUSED_FILE, str(outcome.failed))
            push(plan.work / REFUSED_FILE)
            raise UserError(str(outcome.failed))
    first = min(failed)
    lost = all(outcome.lost for outcome in failed.values())
    raise UserError(
        f"{plan.place}: {len(failed)} of {len(tokens.parts)} shards could not be extracted "
        f"(shard {first}: {failed[first].failed}); "
        + ("the same command continues with the missing shards" if lost else MENDED)
    )


def _manifest(plan: ExtractionPlan, tokens: TokenPlan) -> Manifest:
    source = plan.source
    files = plan.files()
    reports = [committed_shard(plan, number, files) for number in range(len(tokens.parts))]
    done = [report for report in reports if report is not None]
    if len(done) < len(reports):
        raise UserError(
            f"{plan.place}: files of {len(reports) - len(done)} shards were deleted or altered during "
            "the extraction; the same command makes them again"
        )
    weights = {report["weights_sha256"] for report in done}
    if len(weights) > 1:
        raise UserError(
            f"source.model {source.model!r}: its weights changed between two attempts at this "
            f"extraction; remove {plan.place} and extract it again"
        )
    sites = live_fields(tokens, done) if source.live else {"sites": site_entries(done)}
    return Manifest(
        format_version=FORMAT_VERSION if len(plan.hookpoints) == 1 else HOOKPOINTS_VERSION,
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
        dataset=_dataset(plan, tokens),
        hookpoint=HOOKPOINT_SEPARATOR.join(plan.hookpoints),
        dtype=source.dtype,
        d_in=plan.d_in,
        context_length=source.context_length,
        patterns=source.used_patterns,
        split={"validation": source.validation, "test": source.test},
        sequences=tokens.parts,
        **sites,
    )


def _dataset(plan: ExtractionPlan, tokens: TokenPlan) -> dict[str, Any]:
    return {
        "id": plan.source.dataset,
        "texts_sha256": tokens.texts_sha256,
        SPLIT_BY: plan.source.split_by or "text",
        "repeated_rows": tokens.repeated_rows,
        **tokens.counts,
    }
