"""The files of an analysis: ``analysis/PHASE/items/KEY`` for each item, ``analysis/PHASE/result``.

Each is a folder that is written whole or not at all; its file says what made it.
"""

from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from raysae.analysis.phase import Item, Phase, Result
from raysae.analysis.subject import Subject
from raysae.errors import UserError
from raysae.identity import Made, differences, flat
from raysae.records.run_files import RunFiles
from raysae.records.tables import write_table
from raysae.sae.checkpoint import METRICS_FILE, WEIGHTS_FILE
from raysae.storage.files import read_json, sha256_of, write_json

ANALYSIS, ITEMS, RESULT = "analysis", "items", "result"
MADE_FILE, RESULT_FILE = "made.json", "result.json"


def phase_folder(files: RunFiles, phase: str) -> Path:
    """The folder of a phase."""
    return files.path / ANALYSIS / phase


def item_folder(files: RunFiles, phase: Phase, item: Item) -> Path:
    """The folder of a phase's item."""
    return phase_folder(files, phase.name) / ITEMS / item.key


def result_folder(files: RunFiles, phase: str) -> Path:
    """The folder of a phase's result: ``result.json``, tables and plots."""
    return phase_folder(files, phase) / RESULT


def made_of(subject: Subject, phase: Phase, settings: Any, item: Item | None = None) -> Made:
    """What makes an item of a phase, or without ``item`` its result."""
    sites = subject.sites if item is None else item.sites
    used = {name: sha256 for name in phase.uses if (sha256 := _digest(subject.files, name))}
    return {
        f"generation.{phase.name}": phase.generation,
        "item": "" if item is None else item.key,
        "store": subject.store_digest,
        "seed": subject.seed,
        **{f"sae.{site.folder}": sae_digest(subject.atlas.files.saes[site]) for site in sites},
        **flat({phase.name: settings.model_dump(mode="json")}),
        **flat({"inputs": phase.inputs(subject, settings, item)}),
        **({} if item is not None else flat({"uses": used})),
    }


def sae_digest(folder: Path) -> str:
    """What an SAE is known by: the sha256 of its weights, or of its record where it has one."""
    weights = folder / WEIGHTS_FILE
    if weights.is_file():
        return sha256_of(weights)
    files = [
        file for file in sorted(folder.iterdir()) if file.is_file() and file.name != METRICS_FILE
    ]
    return sha256_of(max(files, key=lambda file: file.stat().st_size))


def _digest(files: RunFiles, phase: str) -> str | None:
    file = result_folder(files, phase) / RESULT_FILE
    return sha256_of(file) if file.is_file() else None


def committed_item(files: RunFiles, phase: Phase, item: Item, wanted: Made) -> Path | None:
    """The folder of an item that is committed and was made as ``wanted``; None otherwise."""
    folder = item_folder(files, phase, item)
    if not (folder / MADE_FILE).is_file():
        files.fetch(folder)
    return folder if _is_made(folder / MADE_FILE, wanted) else None


def _is_made(file: Path, wanted: Made) -> bool:
    if not file.is_file():
        return False
    try:
        made = read_json(file)
    except UserError:
        return False
    return isinstance(made, dict) and not differences(made, wanted)


def write_result(
    files: RunFiles, phase: Phase, made: Made, result: Result, failed: Mapping[str, str],
    draw: Any,
) -> Path:  # fmt: skip
    """Commit a phase's result with its tables, and the plots that ``draw(folder)`` makes; its folder."""
    target = result_folder(files, phase.name)
    with files.replacing_folder(target) as folder:
        for name, rows in result.tables.items():
            if rows:
                write_table(folder / f"{name}.parquet", rows)
        for name, parts in result.large.items():
            _write_parts(folder / f"{name}.parquet", parts())
        draw(folder)
        record = {
            "phase": phase.name, "title": phase.title, "made": made, "figures": dict(result.figures),
            "brief": result.brief, "section": result.section.record(), "failed": dict(failed),
        }  # fmt: skip
        write_json(folder / RESULT_FILE, record)
    return target


def _write_parts(file: Path, parts: Iterator[pa.Table]) -> None:
    """Write a table part by part; none where there is no part."""
    first = next(parts, None)
    if first is None:
        return
    with pq.ParquetWriter(file, first.schema, compression="zstd") as writer:
        for part in chain([first], parts):
            writer.write_table(part)


def read_result(files: RunFiles, phase: str) -> dict[str, Any] | None:
    """The content of a phase's ``result.json``; None where there is none, or it is damaged."""
    file = result_folder(files, phase) / RESULT_FILE
    if not file.is_file():
        files.fetch(file.parent)
    try:
        found = read_json(file) if file.is_file() else None
    except UserError:
        return None
    return found if isinstance(found, dict) and "section" in found else None


def committed_result(subject: Subject, phase: Phase, settings: Any) -> dict[str, Any] | None:
    """The result of a phase that is complete and was made as it would be now; None otherwise."""
    found = read_result(subject.files, phase.name)
    if found is None or found.get("failed"):
        return None
    wanted = made_of(subject, phase, settings)
    made = found.get("made")
    return found if isinstance(made, dict) and not differences(made, wanted) else None
