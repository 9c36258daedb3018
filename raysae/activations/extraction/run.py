"""Running an extraction: a Ray Data pipeline over the shards that are not there yet.

A shard counts once its report is written, last of its files; the store once its manifest is. Between
the two nothing is lost: the same command goes on with the shards that are missing.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from raysae.activations.extraction.plan import IDENTITY_FILE, REFUSED_FILE, ExtractionPlan
from raysae.activations.extraction.progress import ExtractionProgress
from raysae.activations.extraction.sequences import TokenPlan, write_tokens
from raysae.activations.extraction.shards import (
    ShardExtractor,
    committed_shard,
    extract_shard,
    row_table,
    site_entries,
)
from raysae.activations.manifest import FORMAT_VERSION, Manifest
from raysae.activations.reader import Store, open_store
from raysae.cluster.placement import Placement
from raysae.cluster.session import stderr_held_back
from raysae.errors import UserError
from raysae.files import (
    locked,
    read_json,
    remove_folder,
    remove_temporary,
    write_json,
    write_text,
)

LOCK_FILE = "lock"


def extract(plan: ExtractionPlan, placement: Placement) -> Store:
    """Run the extraction on the connected Ray, or go on with one that was interrupted; the store.

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
            _run(plan, tokens, placement)
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


def _run(plan: ExtractionPlan, tokens: TokenPlan, placement: Placement) -> None:
    """Extract every shard that is not committed yet."""
    import ray

    missing = [n for n in range(len(tokens.parts)) if committed_shard(plan, n) is None]
    if not missing:
        return
    dataset = ray.data.from_arrow([row_table(n) for n in missing]).map_batches(
        batch_size=1, batch_format="pyarrow", **_pool(plan, placement, len(missing))
    )
    refused = None
    try:
        with stderr_held_back() if placement.gpus else nullcontext():
            refused = [row["refused"] for row in dataset.iter_rows() if row["refused"]]
    except KeyboardInterrupt:
        pass  # it holds Ray Data's iterator, which would outlive Ray and start another
    except ray.exceptions.RayError as error:
        cause = getattr(error, "cause", None) or error
        raise UserError(
            f"{plan.folder}: a worker was lost ({str(cause).splitlines()[0]}); "
            "the same command goes on with the shards that are missing"
        ) from error
    if refused is None:
        raise KeyboardInterrupt
    if refused:
        write_text(plan.work / REFUSED_FILE, refused[0])
        raise UserError(refused[0])


def _pool(plan: ExtractionPlan, placement: Placement, shards: int) -> dict[str, Any]:
    """Tasks, which start on processes that Ray has ready; on GPUs actors, so that models stay."""
    import ray

    size = min(placement.workers, shards)
    if not placement.gpus:
        return {
            "fn": extract_shard,
            "fn_kwargs": {"plan": plan},
            "compute": ray.data.TaskPoolStrategy(size=size),
            "num_cpus": placement.cpus,
        }
    return {
        "fn": ShardExtractor,
        "fn_constructor_kwargs": {"plan": plan},
        "compute": ray.data.ActorPoolStrategy(size=size),
        "num_cpus": placement.cpus,
        "num_gpus": placement.gpus,
    }


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
