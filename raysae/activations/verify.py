"""Verifying a store: the manifest is checked against the files, and every problem is listed.

Memory is bounded: each thread holds one row group, and the tokens of a few sequences files.
Shapes: N rows (or tokens, or sequences), D d_in.
"""

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor

from raysae.activations.damage import DAMAGE, reason
from raysae.activations.manifest import (
    MANIFEST_FILE,
    SEQUENCES_FOLDER,
    Manifest,
    SequencesEntry,
    ShardEntry,
    SplitRows,
    manifest_of,
)
from raysae.activations.pages import footer_problem, uneven_columns
from raysae.activations.places import files_of
from raysae.activations.schema import (
    ITEM_BYTES,
    SEQUENCES_SCHEMA,
    columns_text,
    shard_schema,
    to_torch,
)
from raysae.activations.show import Texts
from raysae.activations.splits import SPLITS, split_of
from raysae.activations.store_files import StoreFile, StoreFiles, files_at
from raysae.activations.sums import Problem, RowSums, statistics_problems
from raysae.activations.writer import WrittenShard
from raysae.sites import ALL, Position

MOST_THREADS = 8
NON_FINITE = "rows with NaN or infinite values"
TOKEN_LISTS = ("token_id", "token_start", "token_end", "is_text", "patterns")

Progress = Callable[[int, int], None]
"""Called with the bytes checked so far and the bytes in total."""


def silent(done: int, total: int) -> None:
    """Ignore the progress."""


def verify(store: str | Path | StoreFiles, progress: Progress = silent) -> list[Problem]:
    """All problems of a store, at a folder or a URI; none when it is sound.

    At a URI each file is read twice, for its checksum and its content, and never copied. Raises
    UserError on an unreadable manifest.
    """
    files = files_at(store) if isinstance(store, str | Path) else store
    manifest = manifest_of(files)
    problems = list(_unusable(manifest))
    if not problems:  # rows cannot be checked without a usable split and d_in
        problems.extend(_contradictions(manifest))
        _check_files(files, manifest, problems, progress)
    return problems


def _check_files(
    store: StoreFiles, manifest: Manifest, problems: list[Problem], progress: Progress
) -> None:
    """Check the sequences, then the shards, several at a time, then the sites' statistics."""
    total, done = sum(file.bytes for file in files_of(manifest)), 0

    def run(checks: "list[_FileCheck]") -> None:
        nonlocal done
        for check in pool.map(_FileCheck.run, checks):
            problems.extend(check.problems)
            done += check.entry.bytes
            progress(done, total)

    with ThreadPoolExecutor(min(os.cpu_count() or 1, MOST_THREADS)) as pool:
        parts = [_PartCheck(store, manifest, part) for part in manifest.sequences]
        run([*parts])
        problems.extend(_unplanned(manifest, parts))
        texts = _texts(parts, problems) if parts else None
        shards = {
            shard.file: _ShardCheck(store, manifest, shard, entry.position, texts)
            for entry in manifest.sites
            for shard in entry.shards
        }
        # by number, so that rows of the same sequences come one after the other
        run(sorted(shards.values(), key=lambda check: check.entry.file.rpartition("/")[2]))
    for entry in manifest.sites:
        written = [w for shard in entry.shards if (w := shards[shard.file].written)]
        problems.extend(statistics_problems(entry, written))


def _texts(parts: "list[_PartCheck]", problems: list[Problem]) -> Texts:
    """The sequences of all readable files. An id that occurs twice is reported as a problem."""
    found: dict[StoreFile, NDArray[np.int64]] = {
        part.path: part.sequence_N for part in parts if part.sequence_N is not None
    }
    texts = Texts(found, complete=len(found) == len(parts))
    twice = texts.repeated()
    if len(twice):
        repeated = f"{len(twice):,} ids of several sequences (first: {twice[0]})"
        problems.append(Problem(f"{SEQUENCES_FOLDER}/", repeated, "a unique id for each sequence"))
    return texts


def _unusable(manifest: Manifest) -> Iterator[Problem]:
    fractions, named = manifest.split.values(), set(manifest.split) == {"validation", "test"}
    if not (named and min(fractions) >= 0 and sum(fractions) < 1):
        expected = "fractions for validation and test, at least 0 each and less than 1 together"
        yield Problem(MANIFEST_FILE, f"split {manifest.split}", expected)
    if manifest.d_in < 1:
        yield Problem(MANIFEST_FILE, f"d_in {manifest.d_in}", "at least 1")


def _contradictions(manifest: Manifest) -> Iterator[Problem]:
    """Problems within the manifest: two of its fields contradict each other."""
    if not manifest.sites:
        yield Problem(MANIFEST_FILE, "no sites", "at least one")
    for entry in manifest.sites:
        summed = [sum(getattr(shard.rows, name) for shard in entry.shards) for name in SPLITS]
        stated = _counts(manifest.rows_on_disk(entry))
        if summed != stated:
            expected = f"{_text(summed)}, the sum over its shards"
            yield Problem(entry.site.folder, f"{_text(stated)} for the site", expected)
        if len(entry.mean) != manifest.d_in:
            found = f"a mean of {len(entry.mean)} values"
            yield Problem(entry.site.folder, found, f"d_in {manifest.d_in}")
        known = not isinstance(entry.position, str) or entry.position in {ALL, *manifest.patterns}
        if manifest.sequences and not known:
            expected = f"one of {', '.join([ALL, *manifest.patterns])}"
            yield Problem(entry.site.folder, f"position {entry.position}", expected)
    for key in ("sequences", "tokens") if manifest.sequences else ():
        count = sum(getattr(part, key) for part in manifest.sequences)
        if (stated := (manifest.dataset or {}).get(key, count)) != count:
            expected = f"{count}, the sum over the sequences files"
            yield Problem(MANIFEST_FILE, f"{stated} {key} in dataset", expected)


def _unplanned(manifest: Manifest, parts: "list[_PartCheck]") -> Iterator[Problem]:
    """Files of sequences with another number of training sequences than a live store's plan says."""
    for part, planned in zip(parts, manifest.live.shards if manifest.live else (), strict=False):
        if part.sequence_N is not None:
            found = int((split_of(part.sequence_N, **manifest.split) == 0).sum())
            if found != planned.sequences:
                expected = f"{planned.sequences:,}, as live says"
                yield Problem(part.entry.file, f"{found:,} training sequences", expected)


class _FileCheck(ABC):
    """Checks one Parquet file and collects its problems."""

    row_bytes = 1
    """The least number of bytes of a row that has been read."""

    def __init__(self, store: StoreFiles, manifest: Manifest, entry: ShardEntry | SequencesEntry):
        self.path: StoreFile = store.file(entry.file)
        self.manifest, self.entry = manifest, entry
        self.problems: list[Problem] = []
        self._broken: dict[str, tuple[int, str, str]] = {}

    def run(self) -> "_FileCheck":
        """Check size, checksum and content; returns itself, with the problems filled in."""
        if not self.path.is_file():
            self.add("missing", f"a file of {self.entry.bytes:,} bytes")
            return self
        try:
            self._check_bytes()
            with self.path.parquet() as file:
                if problem := footer_problem(file.metadata, self.path.size(), self.row_bytes):
                    self.add(f"a footer of {problem}", "a whole Parquet file")
                else:
                    self.check(file)
        except DAMAGE as error:
            self.add(f"unreadable ({reason(error)[:80]})", "a whole Parquet file")
        for what, (count, first, expected) in self._broken.items():
            self.add(f"{count:,} {what} (first: {first})", expected)
        return self

    @abstractmethod
    def check(self, file: pq.ParquetFile) -> None:
        """Check the content of an open file."""

    def add(self, found: str, expected: str) -> None:
        self.problems.append(Problem(self.entry.file, found, expected))

    def add_rows(
        self, bad_N: NDArray[Any], what: str, first: Callable[[int], str], expected: str
    ) -> None:
        """Count the items that break a rule, over several calls; describe the first of them."""
        if bad_N.any():
            count, *texts = self._broken.get(what, (0, first(int(bad_N.argmax())), expected))
            self._broken[what] = (count + int(bad_N.sum()), texts[0], texts[1])

    def columns_are(self, found: pa.Schema, wanted: pa.Schema) -> bool:
        if found.equals(wanted):
            return True
        self.add(f"columns {columns_text(found)}", columns_text(wanted))
        return False

    def _check_bytes(self) -> None:
        size = self.path.size()
        if size != self.entry.bytes:
            self.add(f"{size:,} bytes", f"{self.entry.bytes:,} bytes")
        elif (checksum := self.path.sha256()) != self.entry.sha256:
            self.add(f"sha256 {checksum[:12]}", f"sha256 {self.entry.sha256[:12]}")


class _PartCheck(_FileCheck):
    """A file of sequences."""

    entry: SequencesEntry
    sequence_N: NDArray[np.int64] | None = None
    """The ids of the sequences; None until the file has been read."""

    def check(self, file: pq.ParquetFile) -> None:
        """Compare the sequences with the manifest, and their lists with one another."""
        if not self.columns_are(file.schema_arrow, SEQUENCES_SCHEMA):
            return
        table = file.read()
        table.validate(full=True)  # texts may not be UTF-8
        sequence_N = table["sequence"].to_numpy()
        length = {name: pc.list_value_length(table[name]).to_numpy() for name in TOKEN_LISTS}
        found = len(table), int(length["token_id"].sum())
        if found != (self.entry.sequences, self.entry.tokens):
            expected = f"{self.entry.sequences:,} sequences, {self.entry.tokens:,} tokens"
            self.add(f"{found[0]:,} sequences, {found[1]:,} tokens", expected)

        def named(i: int) -> str:
            return f"sequence {sequence_N[i]}"

        uneven_N = np.any([length[name] != length["token_id"] for name in TOKEN_LISTS], axis=0)
        self.add_rows(uneven_N, "sequences with uneven lists", named, "one item per token")
        longest = self.manifest.context_length or np.inf
        long_N = length["token_id"] > longest
        self.add_rows(long_N, "sequences too long", named, f"at most {longest} tokens")
        if not uneven_N.any():
            self._check_tokens(table, np.repeat(np.arange(len(table)), length["token_id"]))
            self.sequence_N = sequence_N

    def _check_tokens(self, table: pa.Table, owner_N: NDArray[np.int64]) -> None:
        sequence_N = table["sequence"].to_numpy()
        flat = {name: _flat(table[name]) for name in TOKEN_LISTS}
        start_N, end_N = flat["token_start"], flat["token_end"]
        characters_N = pc.utf8_length(table["text"]).to_numpy()[owner_N]
        placed_N = (start_N >= 0) & (start_N <= end_N) & (end_N <= characters_N)
        outside_N = ~placed_N & ((start_N != -1) | (end_N != -1))

        def named(i: int) -> str:
            return f"sequence {sequence_N[owner_N[i]]}, id {flat['token_id'][i]}"

        expected = "token_start and token_end within the text, or both -1"
        self.add_rows(outside_N, "tokens outside the text", named, expected)
        self.add_rows(flat["token_id"] < 0, "tokens with a negative id", named, "ids from 0")
        most = 1 << len(self.manifest.patterns)
        unknown_N = (flat["patterns"] < 0) | (flat["patterns"] >= most)
        self.add_rows(unknown_N, "tokens with unknown patterns", named, f"bits below {most}")


class _ShardCheck(_FileCheck):
    """A shard of a site."""

    entry: ShardEntry
    written: WrittenShard | None = None
    """The entry and sums that the writer would have made; None unless all rows are finite."""

    def __init__(
        self, store: StoreFiles, manifest: Manifest, entry: ShardEntry, position: Position,
        texts: Texts | None,
    ):  # fmt: skip
        super().__init__(store, manifest, entry)
        self.position, self.texts = position, texts
        self.row_bytes = manifest.d_in * ITEM_BYTES[manifest.dtype]

    def check(self, file: pq.ParquetFile) -> None:
        """Compare the rows with the manifest and the sequences; adds up their statistics."""
        wanted = shard_schema(self.manifest.dtype, self.manifest.d_in)
        self._check_metadata(file.schema_arrow.metadata or {}, wanted.metadata)
        if not self.columns_are(file.schema_arrow, wanted):
            return
        if problem := uneven_columns(file.metadata):
            self.add(problem, "one value for each row")
            return
        sums, counts, first = RowSums(self.manifest.d_in), np.zeros(len(SPLITS), dtype=np.int64), 0
        for group in range(file.num_row_groups):
            if not len(table := file.read_row_group(group)):
                continue
            table.validate()
            sums.add(self._activations(table, first))
            counts += self._check_splits(table["sequence"].to_numpy(), group, first)
            self._check_tokens(table, first)
            first += len(table)
        self._check_counts(counts.tolist())
        if NON_FINITE not in self._broken:
            rows = SplitRows(**dict(zip(SPLITS, counts.tolist(), strict=True)))
            entry = self.entry.model_copy(update={"rows": rows})
            self.written = WrittenShard(entry, *sums.finish())

    def _check_metadata(self, found: Mapping[bytes, bytes], wanted: Mapping[bytes, bytes]) -> None:
        for key, value in wanted.items():
            stored = found.get(key, b"missing").decode(errors="replace")
            if stored != value.decode():
                self.add(f"{key.decode()} {stored}", f"{key.decode()} {value.decode()}")

    def _check_counts(self, counts: list[int]) -> None:
        total, wanted = self.entry.rows.total, _counts(self.entry.rows)
        if sum(counts) != total:
            self.add(f"{sum(counts):,} rows", f"{total:,} rows")
        elif counts != wanted:
            self.add(f"{_text(counts)}, by their sequences", _text(wanted))

    def _activations(self, table: pa.Table, first: int) -> Tensor:
        rows_ND = torch.cat(to_torch(table["activation"], self.manifest.dtype))
        if not rows_ND.sum(dtype=torch.float32).isfinite():  # faster than a test of each value
            finite_N = rows_ND.isfinite().all(dim=1).numpy()
            self.add_rows(~finite_N, NON_FINITE, _row(table, first), "finite values")
        return rows_ND

    def _check_splits(
        self, sequence_N: NDArray[np.int64], group: int, first: int
    ) -> NDArray[np.int64]:
        """Compare each row's split with its sequence's hash. Counts the rows by the hash's split."""
        code_N = split_of(sequence_N, **self.manifest.split)
        ends = np.cumsum(_counts(self.entry.rows))
        row_N = np.arange(first, first + len(code_N))
        placed_N = np.searchsorted(ends, row_N, side="right").clip(max=len(SPLITS) - 1)

        def named(i: int) -> str:
            return f"row {row_N[i]}, sequence {sequence_N[i]}, in {SPLITS[placed_N[i]]}"

        expected = "the split that the sequence's hash gives"
        self.add_rows(placed_N != code_N, "rows in the wrong split", named, expected)
        if placed_N[0] != placed_N[-1]:
            both = f"{SPLITS[placed_N[0]]} and {SPLITS[placed_N[-1]]}"
            self.add(f"row group {group} with {both} rows", "row groups of one split each")
        return np.bincount(code_N, minlength=len(SPLITS))

    def _check_tokens(self, table: pa.Table, first: int) -> None:
        row, position = _row(table, first), self.position
        index_N, id_N = table["token_index"].to_numpy(), table["token_id"].to_numpy()
        longest = self.manifest.context_length or 2**31
        outside_N = (index_N < 0) | (index_N >= longest)
        self.add_rows(outside_N, "rows with a token_index out of range", row, f"0 to {longest - 1}")
        if not self.texts:
            return
        tokens = self.texts.tokens(table["sequence"].to_numpy(), index_N)
        if self.texts.complete:
            expected = "sequences in the sequences files"
            self.add_rows(~tokens.known_N, "rows of unknown sequences", row, expected)
        beyond_N = tokens.known_N & ~tokens.inside_N & ~outside_N
        self.add_rows(beyond_N, "rows beyond their sequence's end", row, "tokens of the sequence")
        other_N = tokens.inside_N & (tokens.token_id_N != id_N)
        self.add_rows(other_N, "rows with another token_id", row, "the sequence's token")
        misplaced_N = tokens.inside_N & ~tokens.at(position, self.manifest.patterns)
        self.add_rows(misplaced_N, "rows at another position", row, f"tokens at {position}")


def _row(table: pa.Table, first: int) -> Callable[[int], str]:
    return lambda i: f"row {first + i}, sequence {table['sequence'][i]}"


def _flat(column: pa.ChunkedArray) -> NDArray[Any]:
    """The items of all lists. A null becomes -2, which no column allows."""
    return pc.list_flatten(column).cast(pa.int32()).fill_null(-2).to_numpy()


def _counts(rows: SplitRows) -> list[int]:
    return [getattr(rows, name) for name in SPLITS]


def _text(counts: list[int]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in zip(SPLITS, counts, strict=True))
