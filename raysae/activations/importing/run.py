"""Running an import: open the file, check every value, write the shards, then write the manifest."""

import hashlib
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from raysae.activations.importing.formats import open_source
from raysae.activations.importing.options import ImportOptions
from raysae.activations.importing.repeats import notes_on_repeats
from raysae.activations.importing.request import Progress, Request, silent
from raysae.activations.importing.scratch import refuse_full_disk
from raysae.activations.importing.selection import (
    Selection,
    select_sites,
    shuffled_pieces,
    site_rows,
)
from raysae.activations.importing.source import STORED_AS, Source
from raysae.activations.importing.target import (
    existing_store,
    imports,
    refuse_deleted,
    refuse_differences,
    refuse_sites,
    taking_in,
    unfinished,
)
from raysae.activations.importing.values import check_values
from raysae.activations.manifest import FORMAT_VERSION, MANIFEST_FILE, Manifest, SiteEntry
from raysae.activations.schema import ITEM_BYTES, Dtype
from raysae.activations.splits import SPLITS
from raysae.activations.writer import ShardFormat, SiteWriter
from raysae.sites import Site
from raysae.storage.remote import bind, hand_over, is_uri, uri_of
from raysae.storage.untrusted import usable_path

HASH_BYTES = 2**22
UNKNOWN = "unknown"


@dataclass(frozen=True)
class ImportPlan:
    """A checked import with all options settled. Nothing has been written yet."""

    out: Path
    """The store's folder; of a store at a URI, this node's copy, which holds the shard in work."""
    source: Source
    options: ImportOptions
    """As given, with dtype, hookpoint and shard size filled in from the file and the store."""
    selections: list[Selection]
    notes: tuple[str, ...]

    @property
    def sites(self) -> list[Site]:
        """The sites that the import adds."""
        return [selection.site for selection in self.selections]

    @property
    def rows(self) -> int:
        """Rows of all sites together."""
        return sum(len(selection) for selection in self.selections)

    @property
    def dtype(self) -> Dtype:
        """The dtype of the activations in the store."""
        assert self.options.dtype, "settled with the plan"
        return self.options.dtype

    @property
    def bytes(self) -> int:
        """Bytes of the activations in the store."""
        return self.rows * self.source.d_in * ITEM_BYTES[self.dtype]


@dataclass(frozen=True)
class Imported:
    """The result of an import."""

    store: Path | str
    """Its folder or URI."""
    format: str
    d_in: int
    dtype: str
    entries: list[SiteEntry]
    """Manifest entries of the sites that the import added."""
    seconds: float
    notes: tuple[str, ...]

    @property
    def rows(self) -> int:
        """Rows written, at all sites together."""
        return sum(entry.rows.total for entry in self.entries)

    @property
    def dropped(self) -> int:
        """Rows left out because they held NaN or infinite values."""
        return sum(entry.dropped for entry in self.entries)

    @property
    def too_large(self) -> int:
        """Rows left out because their norm was too large."""
        return sum(entry.too_large for entry in self.entries)

    @property
    def bytes(self) -> int:
        """Bytes of the shards written."""
        return sum(shard.bytes for entry in self.entries for shard in entry.shards)


def import_activations(
    file: Path | str, out: Path | str, *, progress: Progress = silent, **options: Any
) -> Imported:
    """Import the activations of a file or folder into a store at a folder or URI: a new one, or one made
    by imports.

    ``options`` are the fields of ``ImportOptions``: ``layer``, ``position``, ``dtype`` and so on.
    Raises UserError on unusable input; files written before the error do not count as a store.
    """
    started = time.monotonic()
    plan = plan_import(Path(file), out, ImportOptions(**options), progress)
    return replace(run_import(plan, progress), seconds=time.monotonic() - started)


def plan_import(
    file: Path, out: Path | str, options: ImportOptions, progress: Progress = silent
) -> ImportPlan:
    """Open the file and decide which rows go to which site; ``out`` is a folder or a URI.

    Raises UserError when this is impossible.
    """
    out = bind(str(out)) if is_uri(str(out)) else usable_path(out)
    store = existing_store(out)
    asked = {key: getattr(options, key) for key in ("split", "seed", "model", "dataset", "dtype")}
    if store:
        refuse_differences(out, store, asked)
    source = open_source(Request(file, options, out, progress))
    settled = _settled(options, source, store)
    selections = select_sites(source, settled)
    notes = *source.notes, *_notes(source, options, store)
    plan = ImportPlan(out, source, settled, selections, notes)
    if store:
        wanted = {"d_in": source.d_in, "dtype": settled.dtype, "hookpoint": settled.hookpoint}
        refuse_differences(out, store, wanted)
    refuse_sites(out, store, plan.sites)
    return plan


def run_import(plan: ImportPlan, progress: Progress = silent) -> Imported:
    """Check every value, write the shards, then the manifest.

    Raises UserError when values cannot be stored, the disk is too small, or another import runs.
    """
    started, options = time.monotonic(), plan.options
    look = check_values(plan.source, plan.selections, plan.dtype, options, progress)
    notes = [*plan.notes, *notes_on_repeats(plan.source, plan.selections[0], look)]
    if uri_of(plan.out) is None:  # else a shard at a time lies here
        refuse_full_disk(plan.out, plan.bytes, "the store")
    with (
        taking_in(plan.out, plan.sites) as store,
        _hashed_meanwhile(plan.source.files) as checksum,
        unfinished(plan.out),
    ):
        entries = _write(plan, progress)
        manifest = _manifest(plan, store, entries, checksum())
        refuse_deleted(plan.out, entries)
        manifest.write(plan.out)
        hand_over(plan.out / MANIFEST_FILE)
    return Imported(
        uri_of(plan.out) or plan.out, plan.source.format, plan.source.d_in, plan.dtype, entries,
        time.monotonic() - started, (*notes, *_split_notes(plan, entries)),
    )  # fmt: skip


def _settled(options: ImportOptions, source: Source, store: Manifest | None) -> ImportOptions:
    return replace(
        options,
        dtype=options.dtype or STORED_AS[source.dtype],
        hookpoint=options.hookpoint or source.hookpoint or UNKNOWN,
        shard_rows=options.shard_rows or (_shard_rows(store) if store else None),
    )


def _shard_rows(store: Manifest) -> int | None:
    rows = imports(store)[-1]["options"]["shard_rows"]
    return None if rows is None else int(rows)


def _notes(source: Source, options: ImportOptions, store: Manifest | None) -> Iterator[str]:
    if source.dtype == torch.float64:
        yield f"the file's float64 values are stored as {options.dtype or 'float32'}"
    if store and options.shard_rows and options.shard_rows != _shard_rows(store):
        yield (
            f"shards of {options.shard_rows} rows, the store's others have "
            f"{_shard_rows(store) or 'as many as fit'}: these sites' rows are in another order"
        )


def _split_notes(plan: ImportPlan, entries: list[SiteEntry]) -> Iterator[str]:
    for name in SPLITS:
        without = [entry for entry in entries if not getattr(entry.rows, name)]
        if without and (name == "train" or plan.options.split[name]):
            more = f" (and {len(without) - 1} more sites)" if len(without) > 1 else ""
            yield f"{without[0].site}{more} has no {name} rows: too few sequences or groups"


def _write(plan: ImportPlan, progress: Progress) -> list[SiteEntry]:
    """Write the sites one after the other, all shuffled in the same way, so their rows stay aligned."""
    options, done, entries = plan.options, 0, []
    form = ShardFormat(
        plan.dtype, options.split, options.seed, options.non_finite, options.max_norm_ratio
    )
    for selection in sorted(plan.selections, key=lambda selection: selection.site):
        writer = SiteWriter(plan.out, selection.site, form, options.shard_rows)
        for piece in shuffled_pieces(len(selection), plan.source.d_in, options.seed):
            writer.add(site_rows(plan.source, selection, piece))
            done += piece.stop - piece.start
            progress("writing", done, plan.rows)
        entries.append(writer.finish())
    return entries


def _manifest(
    plan: ImportPlan, store: Manifest | None, entries: list[SiteEntry], checksum: str
) -> Manifest:
    record = _record(plan, checksum)
    if store:
        sites = sorted([*store.sites, *entries], key=lambda entry: entry.site)
        source = {**store.source, "imports": [*imports(store), record]}
        return store.model_copy(update={"sites": sites, "source": source})
    options = plan.options
    return Manifest(
        format_version=FORMAT_VERSION,
        provenance="imported",
        source={"imports": [record]},
        model={"id": options.model} if options.model else None,
        dataset={"id": options.dataset} if options.dataset else None,
        hookpoint=options.hookpoint or UNKNOWN,
        dtype=plan.dtype,
        d_in=plan.source.d_in,
        split=options.split,
        sites=entries,
    )


def _record(plan: ImportPlan, checksum: str) -> dict[str, Any]:
    """The manifest's record of one import. It has names of files, but no paths of this machine."""
    source = plan.source
    return {
        "file": source.path.resolve().name,
        "format": source.format,
        "bytes": sum(file.stat().st_size for file in source.files),
        "sha256": checksum,
        "shape": list(source.shape),
        "activation": source.activation or None,
        "columns": {role: column.name for role, column in (source.columns or {}).items()},
        "read_as": list(source.said),
        "notes": list(plan.notes),
        "sites": [site.folder for site in sorted(plan.sites)],
        "options": plan.options.record(),
    }


@contextmanager
def _hashed_meanwhile(files: tuple[Path, ...]) -> Iterator[Callable[[], str]]:
    """Hash the files in a thread while the block runs. Yields a function that waits for the sha256."""
    stop = threading.Event()

    def checksum() -> str:
        sum_of_all = hashlib.sha256()
        for path in sorted(files, key=lambda path: path.name):
            with path.open("rb") as file:
                while not stop.is_set() and (data := file.read(HASH_BYTES)):
                    sum_of_all.update(data)
        return sum_of_all.hexdigest()

    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(checksum)
        try:
            yield future.result
        finally:
            stop.set()
