"""From texts to a store: a Ray Data pipeline, one shard of sequences a task, one pass a text.

A shard's content follows from the recipe and the shard's number alone, so the store is the same
whatever the number of workers. This module and ``shared`` are the only ones here that know Ray.
"""

import json
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from raysae.activations.manifest import (
    FORMAT_VERSION,
    MANIFEST_FILE,
    Manifest,
    ShardEntry,
    SiteEntry,
    read_manifest,
)
from raysae.activations.models import load_model, load_model_config, with_absolute_model
from raysae.activations.reader import Store, open_store
from raysae.activations.texts import fingerprint
from raysae.activations.writer import ShardFormat, WrittenShard, site_entry, write_shard
from raysae.cluster.placement import Placement
from raysae.cluster.session import stderr_held_back
from raysae.cluster.worker import kept, prepare_worker
from raysae.config import Recipe, SourceConfig
from raysae.errors import UserError
from raysae.files import write_json
from raysae.sites import Position, Site

MARKER = "extraction.json"
"""Stands in a store's folder from the start of an extraction until the manifest is written."""

Progress = Callable[[int, int, int], None]
"""Called with shards done, shards in all, and bytes written so far."""


@dataclass(frozen=True)
class ExtractionPlan:
    """What an extraction will do, settled and checked before any work."""

    source: SourceConfig
    """As the recipe has it."""
    readable: SourceConfig
    """The same, with paths that any worker can read."""
    seed: int
    folder: Path
    layers: tuple[int, ...]
    architecture: str
    model_layers: int
    d_in: int

    @property
    def positions(self) -> list[Position]:
        return sorted(self.source.position_list, key=lambda p: Site(0, p))

    def identity(self) -> dict[str, Any]:
        """What decides the store's content, to tell one store from another."""
        return {**self.source.model_dump(mode="json"), "seed": self.seed}


def plan_extraction(recipe: Recipe) -> ExtractionPlan:
    """Check the source and settle its layers. Raises UserError when something cannot be."""
    source = recipe.source
    assert source is not None, "planned only for recipes with a source"
    config = load_model_config(source).get_text_config()
    layers = tuple(range(config.num_hidden_layers)) if source.layers == "all" else source.layers
    beyond = [layer for layer in layers if not 0 <= layer < config.num_hidden_layers]
    if beyond:
        raise UserError(
            f"source.layers: {source.model!r} has {config.num_hidden_layers} layers, "
            f"0 to {config.num_hidden_layers - 1}; found {', '.join(map(str, beyond))}"
        )
    longest = getattr(config, "max_position_embeddings", source.context_length)
    if source.context_length > longest:
        raise UserError(
            f"source.context_length is {source.context_length}; {source.model!r} reads at most "
            f"{longest} tokens"
        )
    return ExtractionPlan(
        source=source,
        readable=with_absolute_model(source),
        seed=recipe.seed,
        folder=recipe.store_folder,
        layers=tuple(sorted(layers)),
        architecture=(config.architectures or [type(config).__name__])[0],
        model_layers=config.num_hidden_layers,
        d_in=config.hidden_size,
    )


def existing_store(plan: ExtractionPlan) -> Store | None:
    """The store, when it is there and made by this very plan; None when there is none yet.

    Raises UserError when the folder holds another store or files that are not raysae's.
    """
    if (plan.folder / MANIFEST_FILE).exists():
        _refuse_other_source(plan, read_manifest(plan.folder).source)
        return open_store(plan.folder)
    strangers = plan.folder.exists() and any(plan.folder.iterdir())
    if strangers and not (plan.folder / MARKER).exists():
        raise UserError(
            f"{plan.folder}: holds files but no activation store; name another folder with "
            "store=FOLDER"
        )
    return None


def extract(
    plan: ExtractionPlan, texts: list[str], placement: Placement, progress: Progress
) -> Store:
    """Run the extraction on the connected Ray and return the finished store.

    Raises UserError on unusable activations or too short texts; nothing counts as a store then.
    """
    shutil.rmtree(plan.folder, ignore_errors=True)
    write_json(plan.folder / MARKER, plan.identity())
    shards = _shards(plan, texts)
    results = _run(plan, shards, placement, progress)
    _manifest(plan, texts, results).write(plan.folder)
    (plan.folder / MARKER).unlink()
    return open_store(plan.folder)


def _refuse_other_source(plan: ExtractionPlan, found: dict[str, Any]) -> None:
    wanted = plan.identity()
    keys = sorted(key for key in {*found, *wanted} if found.get(key) != wanted.get(key))
    if keys:
        rows = [
            f"  {key}: store has {found.get(key)!r}, recipe has {wanted.get(key)!r}" for key in keys
        ]
        raise UserError(
            f"{plan.folder}: holds a store made from another source; name another folder with "
            "store=FOLDER, or remove it\n" + "\n".join(rows)
        )


def _shards(plan: ExtractionPlan, texts: list[str]) -> list[pa.Table]:
    """The sequences in a seeded random order, cut into shards: training can then read in order.

    A shard is one row, so that no batching of Ray Data's can cut or join shards.
    """
    order = np.random.default_rng(plan.seed).permutation(len(texts))
    size = plan.source.sequences_per_shard
    parts = [order[start : start + size] for start in range(0, len(order), size)]
    return [
        pa.table({"shard": [number], "sequences": [part], "texts": [[texts[i] for i in part]]})
        for number, part in enumerate(parts)
    ]


def _run(
    plan: ExtractionPlan, shards: list[pa.Table], placement: Placement, progress: Progress
) -> list[dict[str, Any]]:
    """Every shard's report, in shard order."""
    import ray

    dataset = ray.data.from_arrow(shards).map_batches(
        batch_size=1, batch_format="pyarrow", **_pool(plan, placement, len(shards))
    )
    try:
        with stderr_held_back() if placement.gpus else nullcontext():
            reports = _gathered(dataset, len(shards), progress)
    except ray.exceptions.RayTaskError as error:
        raise RuntimeError(f"extraction failed in a worker: {error.cause or error}") from error
    refused = [report["refused"] for report in reports if "refused" in report]
    if refused:
        raise UserError(refused[0])
    return sorted(reports, key=lambda report: report["shard"])


def _gathered(dataset: Any, shards: int, progress: Progress) -> list[dict[str, Any]]:
    """Each shard's report as it arrives."""
    reports: list[dict[str, Any]] = []
    for row in dataset.iter_rows():
        reports.append(json.loads(row["report"]))
        written = sum(site["entry"]["bytes"] for r in reports for site in r.get("sites", ()))
        progress(len(reports), shards, written)
    return reports


def _pool(plan: ExtractionPlan, placement: Placement, shards: int) -> dict[str, Any]:
    """Tasks, which start on processes that Ray has ready; on GPUs actors, so that models stay."""
    import ray

    size = min(placement.workers, shards)
    if not placement.gpus:
        return {
            "fn": _extract_shard,
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


def _extract_shard(shard: pa.Table, plan: ExtractionPlan) -> pa.Table:
    """``ShardExtractor`` as a task; the process keeps the transformer for its next shard."""
    extractor = kept(f"extractor {plan.folder} {plan.identity()}", lambda: ShardExtractor(plan))
    return extractor(shard)


class ShardExtractor:
    """A Ray Data worker: holds the transformer, turns a shard of texts into its sites' files."""

    def __init__(self, plan: ExtractionPlan):
        self.plan = plan
        self.refusal = ""
        try:
            self._load(plan)
        except UserError as error:  # a constructor's error would reach the user as Ray's traceback
            self.refusal = str(error)

    def __call__(self, shard: pa.Table) -> pa.Table:
        """One row, its ``report`` a JSON text: what was written, or why it was refused."""
        try:
            report = (
                {"refused": self.refusal} if self.refusal else self._extract(**shard.to_pylist()[0])
            )
        except UserError as error:
            report = {"refused": str(error)}
        return pa.table({"report": [json.dumps(report)]})

    def _load(self, plan: ExtractionPlan) -> None:
        from raysae.activations.capture import Capturer, tokenizer_hash, weights_hash

        device = prepare_worker()
        model, tokenizer = load_model(plan.readable)
        self.hashes = {
            "weights_sha256": weights_hash(model),
            "tokenizer_sha256": tokenizer_hash(tokenizer),
        }
        self.capturer = Capturer(
            model.to(device),
            tokenizer,
            hookpoint=plan.source.hookpoint,
            layers=plan.layers,
            context=plan.source.context_length,
        )

    def _extract(self, shard: int, sequences: list[int], texts: list[str]) -> dict[str, Any]:
        from raysae.activations.capture import long_enough

        source = self.plan.source
        tokens = self.capturer.tokenize(sequences, texts)
        used = [row for row in tokens if long_enough(row, source.position_list)]
        form = ShardFormat(source.dtype, {"validation": source.validation, "test": source.test})
        sites = []
        for site, rows in (self.capturer.rows(used, source.position_list) if used else {}).items():
            written = write_shard(self.plan.folder, site, shard, rows, form)
            sites.append(
                {
                    "site": asdict(site),
                    "entry": written.entry.model_dump(),
                    "sum": written.sum_D.tolist(),
                    "square_sum": written.square_sum,
                }
            )
        full = sum(len(row.ids) == source.context_length for row in tokens)
        counts = {"used": len(used), "too_short": len(tokens) - len(used), "at_full_length": full}
        return {"shard": shard, "sites": sites, "counts": counts, "hashes": self.hashes}


def _manifest(plan: ExtractionPlan, texts: list[str], reports: list[dict[str, Any]]) -> Manifest:
    counts = {key: sum(r["counts"][key] for r in reports) for key in reports[0]["counts"]}
    sites = _site_entries(reports)
    if not sites:
        raise UserError(
            f"source.positions {list(plan.source.position_list)}: none of the {len(texts)} texts "
            f"of {plan.source.dataset!r} is long enough; ask for fewer tokens"
        )
    for entry in sites:
        for name in ("train", "validation"):
            if not getattr(entry.rows, name):
                raise UserError(
                    f"{entry.site}: no {name} rows ({entry.rows.total} rows in all); raise "
                    "source.sequences or the split's share"
                )
    source = plan.source
    return Manifest(
        format_version=FORMAT_VERSION,
        provenance="model",
        source=plan.identity(),
        model={
            "id": source.model,
            "revision": source.revision,
            "architecture": plan.architecture,
            "layers": plan.model_layers,
            **reports[0]["hashes"],
        },
        dataset={
            "id": source.dataset,
            "texts_sha256": fingerprint(texts),
            "sequences": len(texts),
            **counts,
        },
        hookpoint=source.hookpoint,
        dtype=source.dtype,
        d_in=plan.d_in,
        split={"validation": source.validation, "test": source.test},
        sites=sites,
    )


def _site_entries(reports: list[dict[str, Any]]) -> list[SiteEntry]:
    shards: dict[Site, list[WrittenShard]] = {}
    for report in reports:
        for row in report["sites"]:
            written = WrittenShard(
                ShardEntry.model_validate(row["entry"]), np.array(row["sum"]), row["square_sum"]
            )
            shards.setdefault(Site(**row["site"]), []).append(written)
    return [site_entry(site, written) for site, written in sorted(shards.items())]
