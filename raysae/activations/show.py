"""Showing a store to people: where it came from, its sites, and a few rows with their texts.

Shapes: N rows, D d_in, S sequences, T tokens of all sequences of a file, one after the other.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray
from rich.text import Text
from torch import Tensor

from raysae.activations.manifest import MANIFEST_FILE, Manifest, SiteEntry
from raysae.activations.places import files_of
from raysae.activations.schema import to_torch
from raysae.activations.sequences import read_sequences
from raysae.activations.splits import SPLITS
from raysae.activations.store import Store
from raysae.activations.store_files import StoreFile, StoreFiles, files_at
from raysae.activations.truth_files import TRUTH_FILES
from raysae.console.output import Table
from raysae.printable import printable
from raysae.sites import ALL, Position, Site

SAMPLES_SEED = 0
VALUES_SHOWN = 4
NAMED_FILES, NAMED_IMPORTS = 10, 5
CACHED_FILES = 4
LONGEST_TOKEN = 30
OTHER_COLUMNS = 58
"""Characters that the other columns of a sample take."""
PROVENANCE = {
    "model": "model: read from a transformer",
    "imported": "imported: another tool wrote it; model and texts are as stated at the import",
    "synthetic": "SYNTHETIC: a made-up world of known atoms, not a transformer's activations",
}


def facts(store: Store) -> list[tuple[str, str]]:
    """What the manifest says of the whole store, as pairs of a name and a printable text."""
    manifest, context = store.manifest, store.manifest.context_length
    entries, parts = manifest.sites, manifest.sequences
    shards = [shard for entry in entries for shard in entry.shards]
    rows, size = sum(shard.rows.total for shard in shards), sum(shard.bytes for shard in shards)
    fractions = ", ".join(f"{part:.4g} {name}" for name, part in manifest.split.items())
    texts = f"{sum(part.sequences for part in parts):,} with their texts, in {len(parts)} files"
    lines = [
        ("store", store.place),
        ("provenance", PROVENANCE[manifest.provenance]),
        *_origin(manifest),
        ("hookpoint", manifest.hookpoint),
        ("activations", f"{manifest.dtype}, d_in {manifest.d_in}"),
        ("context", f"{context} tokens at most" if context else "length not known"),
        *((f"pattern {name}", pattern) for name, pattern in manifest.patterns.items()),
        ("split", f"{fractions}, train the rest; by the hash of the sequence's id"),
        ("seed", _or(_seed(manifest.source), "not known")),
        ("sequences", texts if parts else "no texts in the store"),
        ("rows", f"{rows:,} at {len(entries)} sites, {size / 1e9:.3f} GB in {len(shards)} shards"),
        *((("live", _live(store)),) if store.live else ()),
        ("digest", store.digest),
    ]
    return [(printable(name), printable(text)) for name, text in lines]


def sites_table(entries: list[SiteEntry]) -> Table:
    """A table with one line per site: rows by split, shards, size in GB, statistics, rows left out."""
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("site", no_wrap=True, vertical="bottom")
    heads = [*SPLITS, "shards", "GB", "mean\nnorm", "total\nvariance", "dropped"]
    with_large = any(entry.too_large for entry in entries)
    for head in [*heads, *(["too\nlarge"] if with_large else [])]:
        table.add_column(head, justify="right", no_wrap=True, vertical="bottom")
    for entry in entries:
        counts = [f"{getattr(entry.rows, name):,}" for name in SPLITS]
        size = sum(shard.bytes for shard in entry.shards) / 1e9
        norm, variance = max(entry.mean_square_norm, 0.0) ** 0.5, entry.total_variance
        cells = [f"{len(entry.shards)}", f"{size:.3f}", f"{norm:.4g}", f"{variance:.4g}"]
        large = [f"{entry.too_large:,}"] if with_large else []
        table.add_row(entry.site.folder, *counts, *cells, f"{entry.dropped:,}", *large)
    return table


@dataclass(frozen=True)
class Sample:
    """A row of a store, with its activation ``[d_in]`` (float64) and where it comes from."""

    sequence: int
    split: str
    token_index: int
    token_id: int
    activation_D: Tensor
    text: dict[str, Any] | None
    """The sequence's row of the sequences files; None when they do not have it."""


def draw_samples(store: Store, site: Site, count: int) -> list[Sample]:
    """Draw ``count`` rows of one shard of the site, or all when it has fewer; always the same rows.

    Raises UserError when a file was altered.
    """
    shards = [shard for shard in store.entry(site).shards if shard.rows.total > 0]
    if not shards or count < 1:
        return []
    random = np.random.default_rng(SAMPLES_SEED)
    counts = np.array([shard.rows.total for shard in shards])
    shard = shards[random.choice(len(shards), p=counts / counts.sum())]
    total = shard.rows.total
    picked = np.sort(random.choice(total, min(count, total), replace=False))
    texts, start = Texts.of(store), 0
    samples: list[Sample] = []
    for split in SPLITS:
        end = start + getattr(shard.rows, split)
        here = picked[(picked >= start) & (picked < end)] - start
        if len(here):
            samples += _samples(store, store.sample(shard, split, here.tolist()), split, texts)
        start = end
    return samples


def samples_table(samples: list[Sample], width: int, bold: bool) -> Table:
    """A table of the samples, ``width`` characters wide. The token is in bold, or in «quotes» without
    ``bold``."""
    table = Table(box=None, padding=(0, 2, 0, 0))
    for head in ("sequence", "split", "token\nindex", "token\nid", "norm"):
        justify = "left" if head == "split" else "right"
        table.add_column(head, justify=justify, no_wrap=True)
    with_texts = any(sample.text for sample in samples)
    table.add_column("text" if with_texts else "first values", overflow="fold")
    side = max((width - OTHER_COLUMNS) // 2, 10)
    for sample in samples:
        numbers = str(sample.token_index), str(sample.token_id), f"{sample.activation_D.norm():.4g}"
        last = around_token(sample, side, bold) if with_texts else _values(sample.activation_D)
        table.add_row(str(sample.sequence), sample.split, *numbers, last)
    return table


def around_token(sample: Sample, side: int, bold: bool) -> Text:
    """The marked token with at most ``side`` characters of text on each side, safe to print."""
    row, index = sample.text, sample.token_index
    if row is None or not 0 <= index < len(row["token_start"]):
        return Text("(the store has no text for it)", style="dim")
    text, start, end = row["text"], row["token_start"][index], row["token_end"][index]
    if start < 0:
        return Text("(a token without a place in the text)", style="dim")
    before, token, after = (
        text[max(start - side, 0) : start],
        text[start:end],
        text[end : end + side],
    )
    before = "…" * (start > side) + printable(before)
    after = printable(after) + "…" * (len(text) > end + side)
    if len(token) > LONGEST_TOKEN:
        token = token[: LONGEST_TOKEN // 2] + "…" + token[-LONGEST_TOKEN // 2 :]
    marked = printable(token) if bold else f"«{printable(token)}»"
    return Text.assemble(before, (marked, "bold reverse" if bold else ""), after)


def unlisted(store: Path | StoreFiles, manifest: Manifest) -> list[str]:
    """Notes on files in the store's folder that the manifest does not list; the first ones are named."""
    known = {MANIFEST_FILE, *TRUTH_FILES, *(file.file for file in files_of(manifest))}
    names = (files_at(store) if isinstance(store, Path) else store).names()
    others = [name for name in names if name not in known]
    notes = [f"{file}: not listed in the manifest" for file in others[:NAMED_FILES]]
    more = len(others) - len(notes)
    return [*notes, f"{more} more files are not listed either"] if more else notes


@dataclass(frozen=True)
class Tokens:
    """The tokens that N rows refer to; the values are valid only where ``inside_N`` is true."""

    known_N: NDArray[np.bool_]
    """Whether the sequence is in the store's files."""
    inside_N: NDArray[np.bool_]
    """Whether the token index lies inside the sequence."""
    values_NC: NDArray[np.int32]
    """``[N, 5]``: token id, is_text, patterns, index among the text tokens, the same from the end."""

    @property
    def token_id_N(self) -> NDArray[np.int32]:
        """The tokens' ids ``[N]``."""
        return self.values_NC[:, 0]

    def at(self, position: Position, patterns: Mapping[str, str]) -> NDArray[np.bool_]:
        """Whether each token is at the position, ``[N]``. A name without a pattern fits any token."""
        _, is_text_N, bits_N, place_N, from_end_N = self.values_NC.T
        if isinstance(position, int):
            fits_N = (place_N if position >= 0 else from_end_N) == position
        elif position == ALL or position not in patterns:
            fits_N = np.ones(len(bits_N), dtype=bool)
        else:
            fits_N = (bits_N >> sorted(patterns).index(position)) & 1 == 1
        return fits_N & (is_text_N == 1)


class Texts:
    """Finds sequences by their ids. Holds all ids, and the tokens of a few files, in memory."""

    def __init__(self, ids: Mapping[StoreFile, NDArray[np.int64]], complete: bool = True):
        self.complete = complete
        """Whether ``ids`` covers all sequences files."""
        self._paths = list(ids)
        id_S = np.concatenate([*ids.values(), np.empty(0, dtype=np.int64)])
        order = np.argsort(id_S, kind="stable")
        self._id_S = id_S[order]
        self._file_S = np.repeat(np.arange(len(ids)), [len(part) for part in ids.values()])[order]
        self._file = lru_cache(CACHED_FILES)(lambda number: _FileTokens(self._paths[number]))

    @classmethod
    def of(cls, store: Store) -> "Texts":
        """The sequences of a store. Raises UserError when a file cannot be read."""
        paths = [store.files.file(part.file) for part in store.manifest.sequences]
        return cls(
            {path: read_sequences(path, ["sequence"])["sequence"].to_numpy() for path in paths}
        )

    def repeated(self) -> NDArray[np.int64]:
        """The ids that occur more than once, sorted."""
        return np.unique(self._id_S[1:][np.diff(self._id_S) == 0])

    def file_of(self, sequence_N: NDArray[np.int64]) -> NDArray[np.int64]:
        """The number of each sequence's file, ``[N]``; -1 for an unknown sequence."""
        if not len(self._id_S):
            return np.full(len(sequence_N), -1)
        at_N = np.searchsorted(self._id_S, sequence_N).clip(max=len(self._id_S) - 1)
        return np.where(self._id_S[at_N] == sequence_N, self._file_S[at_N], -1)

    def tokens(self, sequence_N: NDArray[np.int64], token_index_N: NDArray[np.int32]) -> Tokens:
        """The tokens at ``token_index_N`` of the sequences ``sequence_N``.

        Raises UserError when a file cannot be read.
        """
        file_N = self.file_of(sequence_N)
        inside_N = np.zeros(len(file_N), dtype=bool)
        values_NC = np.zeros((len(file_N), 5), dtype=np.int32)
        for number in np.unique(file_N[file_N >= 0]):
            here = np.flatnonzero(file_N == number)
            inside_N[here], values_NC[here] = self._file(number).at(
                sequence_N[here], token_index_N[here]
            )
        return Tokens(file_N >= 0, inside_N, values_NC)

    def row(self, sequence: int) -> dict[str, Any] | None:
        """All columns of one sequence, by name; None when it is unknown.

        Raises UserError when the file cannot be read.
        """
        number = int(self.file_of(np.array([sequence]))[0])
        if number < 0:
            return None
        table = read_sequences(self._paths[number])
        return table.slice(table["sequence"].to_pylist().index(sequence), 1).to_pylist()[0]


class _FileTokens:
    """The tokens of one file of sequences."""

    def __init__(self, path: StoreFile):
        table = read_sequences(path, ["sequence", "token_id", "is_text", "patterns"])
        sequence_S = table["sequence"].to_numpy()
        self.length_S = pc.list_value_length(table["token_id"]).to_numpy()
        self.start_S = np.cumsum(self.length_S) - self.length_S
        self.order = np.argsort(sequence_S, kind="stable")
        self.sequence_S = sequence_S[self.order]
        token_id_T, is_text_T, patterns_T = (
            pc.list_flatten(table[name]).to_numpy().astype(np.int32)
            for name in ("token_id", "is_text", "patterns")
        )
        texts = np.concatenate([[0], np.cumsum(is_text_T)])
        before_T = np.repeat(texts[self.start_S], self.length_S)
        after_T = np.repeat(texts[self.start_S + self.length_S], self.length_S)
        place_T, from_end_T = texts[:-1] - before_T, texts[:-1] - after_T
        values = [token_id_T, is_text_T, patterns_T, place_T, from_end_T]
        # one more row: index -1 stands for tokens outside their sequence
        self.values_TC = np.pad(np.stack(values, axis=1).astype(np.int32), ((0, 1), (0, 0)))

    def at(
        self, sequence_N: NDArray[np.int64], token_index_N: NDArray[np.int32]
    ) -> tuple[NDArray[np.bool_], NDArray[np.int32]]:
        slot_N = self.order[np.searchsorted(self.sequence_S, sequence_N)]
        inside_N = (token_index_N >= 0) & (token_index_N < self.length_S[slot_N])
        return inside_N, self.values_TC[
            np.where(inside_N, self.start_S[slot_N] + token_index_N, -1)
        ]


def _samples(store: Store, rows: pa.Table, split: str, texts: Texts) -> Iterator[Sample]:
    if not len(rows):
        return
    activations = torch.cat(to_torch(rows["activation"], store.manifest.dtype)).double()
    columns = (rows[name].to_pylist() for name in ("sequence", "token_index", "token_id"))
    for activation_D, sequence, token_index, token_id in zip(activations, *columns, strict=True):
        yield Sample(sequence, split, token_index, token_id, activation_D, texts.row(sequence))


def _values(activation_D: Tensor) -> Text:
    shown = "  ".join(f"{value:.4g}" for value in activation_D[:VALUES_SHOWN].tolist())
    return Text(shown + "  …" * (len(activation_D) > VALUES_SHOWN))


def _origin(manifest: Manifest) -> Iterator[tuple[str, str]]:
    """The lines on the model, the data set, the imported files or the synthetic world."""
    yield from _record_lines("model", manifest.model)
    yield from _record_lines("dataset", manifest.dataset)
    imports = _imports(manifest.source)
    for record in imports[:NAMED_IMPORTS]:
        words = [f"{record.get('file')} ({record.get('format')})", f"shape {record.get('shape')}"]
        yield "imported", f"{', '.join(words)}, sha256 {record.get('sha256')}"
        yield from (("read as", str(said)) for said in record.get("read_as") or [])
        yield from (("note", str(note)) for note in record.get("notes") or [])
    if len(imports) > NAMED_IMPORTS:
        yield "imported", f"and {len(imports) - NAMED_IMPORTS} more"
    if manifest.provenance != "model" and not imports:
        yield "source", json.dumps(manifest.source)


def _record_lines(what: str, record: dict[str, Any] | None) -> Iterator[tuple[str, str]]:
    """One line with the short values, and one line for each hash."""
    if record is None:
        return
    words = [str(record.get("id", "no name"))]
    hashes = []
    for key, value in record.items():
        name = key.replace("_", " ")
        if key.endswith("_sha256"):
            hashes.append((key.removesuffix("_sha256"), f"sha256 {value}"))
        elif key != "id":
            words.append(f"{value:,} {name}" if isinstance(value, int) else f"{name} {_or(value)}")
    yield what, ", ".join(words)
    yield from hashes


def _live(store: Store) -> str:
    """What is on disk of a live store's training rows."""
    total = sum(store.entry(site).rows.train for site in store.sites)
    if not store.computes_rows:
        return f"all {total:,} training rows were kept, so the store is read like any other"
    head = sum(map(store.head_rows, store.sites))
    on_disk = f"{head:,} of them are on disk as the head"
    return f"{total:,} training rows are computed while training, {on_disk}"


def _seed(source: dict[str, Any]) -> Any:
    """The seed of the recipe's source, the synthetic world or the first import; None if unknown."""
    records = [source, source.get("world"), *(i.get("options") for i in _imports(source)[:1])]
    seeds = [record["seed"] for record in records if isinstance(record, dict) and "seed" in record]
    return seeds[0] if seeds else None


def _imports(source: dict[str, Any]) -> list[dict[str, Any]]:
    records = source.get("imports")
    return [r for r in records if isinstance(r, dict)] if isinstance(records, list) else []


def _or(value: Any, otherwise: str = "none") -> str:
    return otherwise if value is None else str(value)
