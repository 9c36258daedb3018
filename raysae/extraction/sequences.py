"""Tokenizing for an extraction: all sequences are written to disk, in their final order and shards.

The recipe alone decides what each shard holds, before any forward pass. So the number of workers and
interruptions do not change the store.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from raysae.activations.manifest import SEQUENCES_FOLDER, LiveShard, SequencesEntry
from raysae.activations.schema import ITEM_BYTES
from raysae.activations.splits import SPLITS, split_of
from raysae.activations.writer import write_sequences
from raysae.console.board import console
from raysae.errors import UserError
from raysae.extraction.plan import (
    HEAD_ROWS,
    HEAD_SHARE,
    OTHER_COLUMNS_BYTES,
    ExtractionPlan,
    model_spec,
    text_spec,
    token_rules,
)
from raysae.sites import Position
from raysae.storage.files import read_json, write_json
from raysae.storage.remote import push, remove
from raysae.transformer.loading import load_tokenizer
from raysae.transformer.repeats import RepeatedRows, prefix_hashes
from raysae.transformer.sequence import TokenSequence, to_table
from raysae.transformer.texts import read_documents
from raysae.transformer.tokens import Tokenizer, tokenizer_hash

SEQUENCES_FILE = "sequences.json"
SHUFFLED_TOKENS = 4_000_000
"""Sequences are shuffled in memory within windows of this many tokens."""
SHARDS, SHARD_TOKENS = 40, 4096
"""A shard holds about one part in ``SHARDS`` of the tokens so far, but may hold ``SHARD_TOKENS``.
So a small data set still keeps many workers busy, and a large one has not too many shards."""


@dataclass(frozen=True)
class TokenPlan:
    """The sequences on disk, and their counts."""

    parts: list[SequencesEntry]
    """Manifest entries of the files, one for each shard, in order."""
    rows: dict[str, dict[str, int]]
    """Rows of a site at each position (as text), by split."""
    counts: dict[str, int]
    texts_sha256: str
    tokenizer_sha256: str
    repeated_rows: dict[str, float] = field(default_factory=dict)
    """By position, the share of held-out rows whose sequence begins with the same tokens as that of a
    training row, so that a model that reads from left to right gives the same activation."""
    training: list[dict[str, Any]] = field(default_factory=list)
    """Of a live source, for each shard what it has for training: the fields of a ``LiveShard``."""

    @property
    def live_shards(self) -> list[LiveShard]:
        """Of a live source, what each shard has for training."""
        return [LiveShard.model_validate(one) for one in self.training]

    @property
    def tokens(self) -> int:
        """Tokens of all shards."""
        return sum(part.tokens for part in self.parts)

    @property
    def sequences(self) -> int:
        """Sequences of all shards."""
        return sum(part.sequences for part in self.parts)

    @property
    def head(self) -> int:
        """Of a live source, the number of first shards whose training rows are written with the store:
        at every position about ``HEAD_ROWS`` rows or ``HEAD_SHARE`` of them, but some."""
        wanted = {
            position: max(min(HEAD_ROWS, HEAD_SHARE * splits["train"]), 1)
            for position, splits in self.rows.items()
        }
        found = dict.fromkeys(wanted, 0)
        for number, shard in enumerate(self.live_shards, 1):
            for position in found:
                found[position] += shard.rows[position]
            if all(found[position] >= wanted[position] for position in found):
                return number
        return len(self.training)

    def work(self) -> list[int]:
        """Tokens that the extraction runs, by shard: of a live source those of held-out sequences, and in
        the head all."""
        tokens, head = [part.tokens for part in self.parts], self.head
        for number, shard in enumerate(self.live_shards[head:], head):
            tokens[number] -= shard.tokens
        return tokens

    def bytes(self, plan: ExtractionPlan) -> int:
        """Estimated bytes of all sites on disk, as the extraction writes them."""
        later = sum(sum(shard.rows.values()) for shard in self.live_shards[self.head :])
        return self.whole_bytes(plan) - later * plan.sites_at_a_position * _row_bytes(plan)

    def whole_bytes(self, plan: ExtractionPlan) -> int:
        """Estimated bytes of all sites on disk, with every training row."""
        rows = sum(sum(splits.values()) for splits in self.rows.values())
        return rows * plan.sites_at_a_position * _row_bytes(plan)


Report = Callable[[int, int], None]
"""Called with the numbers of sequences and tokens written so far."""


def write_tokens(plan: ExtractionPlan, report: Report) -> TokenPlan:
    """Read and tokenize the texts and write the sequences, unless an earlier attempt has done so.

    Raises UserError when the data set cannot be read, or a position has no training or validation rows.
    """
    file = plan.work / SEQUENCES_FILE
    if file.exists():
        try:
            return _written(plan, file)
        except (UserError, KeyError, TypeError, ValueError, AttributeError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            console.print(
                f"{file}: damaged ({reason}); the texts are tokenized and every shard is made again"
            )
            for stale in plan.work.glob("shard-*.json"):  # of texts that nobody can compare now
                remove(stale)
    remove(plan.folder / SEQUENCES_FOLDER)
    tokens = _Writing(plan, report).run()
    _refuse_unusable(plan, tokens)
    record = {**asdict(tokens), "parts": [part.model_dump() for part in tokens.parts]}
    write_json(file, record)
    push(file)
    return tokens


def _written(plan: ExtractionPlan, file: Path) -> TokenPlan:
    """The sequences that an earlier attempt has written.

    Raises UserError, or what Python raises on a record of another form, when they are damaged.
    """
    record = read_json(file)
    parts = [SequencesEntry.model_validate(part) for part in record.pop("parts")]
    files = plan.files()
    for part in parts:
        path = files.file(part.file)
        if not path.is_file() or path.sha256() != part.sha256:
            raise UserError(f"{path} is missing or was altered")
    tokens = TokenPlan(parts, **record)
    tokens.bytes(plan)
    if plan.source.live and len(tokens.training) != len(parts):
        raise UserError("it does not say what each shard has for training")
    return tokens


def peek(plan: ExtractionPlan) -> None:
    """Read and tokenize the first text. Raises UserError as ``first_sequences`` does."""
    first_sequences(plan, 1)


def first_sequences(plan: ExtractionPlan, texts: int) -> list[TokenSequence]:
    """The sequences of the first ``texts`` texts.

    Raises UserError when the data set cannot be read, the tokenizer cannot be loaded, or a text cannot
    be written out or tokenized as the recipe says.
    """
    tokenizer = Tokenizer(load_tokenizer(model_spec(plan.readable)), token_rules(plan.source))
    return list(tokenizer.sequences(islice(read_documents(text_spec(plan.readable)), texts)))


@dataclass
class _Writing:
    """One pass over the data set."""

    plan: ExtractionPlan
    report: Report
    parts: list[SequencesEntry] = field(default_factory=list)
    rows: dict[Position, dict[str, int]] = field(default_factory=dict)
    training: list[dict[str, Any]] = field(default_factory=list)
    tokens: int = 0
    sequences: int = 0
    documents: int = 0

    def __post_init__(self) -> None:
        self.rows = {p: dict.fromkeys(SPLITS, 0) for p in self.plan.positions}
        self.repeated = {p: RepeatedRows() for p in self.plan.positions}

    def run(self) -> TokenPlan:
        """Read, tokenize, shuffle, cut into shards and write. Returns the resulting plan."""
        transformers_tokenizer = load_tokenizer(model_spec(self.plan.readable))
        # hashed before use: a used tokenizer stores its last truncation, which changes its hash
        sha256 = tokenizer_hash(transformers_tokenizer)
        tokenizer = Tokenizer(transformers_tokenizer, token_rules(self.plan.source))
        documents = read_documents(text_spec(self.plan.readable))
        within = self._within_budget(self._usable(tokenizer, tokenizer.sequences(documents)))
        for shard in self._shards(_shuffled(within, self.plan.seed)):
            if self.plan.source.live:
                self.training.append(self._training(shard))
            self.parts.append(write_sequences(self.plan.folder, len(self.parts), to_table(shard)))
            self.report(self.sequences, self.tokens)
        return TokenPlan(
            self.parts,
            {str(position): counts for position, counts in self.rows.items()},
            {**tokenizer.found.record(), "sequences": self.sequences, "tokens": self.tokens},
            tokenizer.texts.hexdigest(),
            sha256,
            {str(position): round(rows.share(), 4) for position, rows in self.repeated.items()},
            self.training,
        )

    def _training(self, shard: list[TokenSequence]) -> dict[str, Any]:
        """What a shard of a live source has for training."""
        names, train = self.plan.source.used_patterns, training_of(shard, self.plan)
        rows = {str(p): sum(len(one.places(p, names)) for one in train) for p in self.rows}
        tokens = sum(map(len, train))
        return LiveShard(sequences=len(train), tokens=tokens, rows=rows).model_dump()

    def _usable(
        self, tokenizer: Tokenizer, sequences: Iterable[TokenSequence]
    ) -> Iterator[tuple[TokenSequence, dict[Position, int]]]:
        """Yield the usable sequences with their numbers of rows. A usable sequence has a row at every
        numbered position, and at least one row."""
        names = self.plan.source.used_patterns
        for sequence in sequences:
            rows = {p: len(sequence.places(p, names)) for p in self.rows}
            if any(rows.values()) and all(rows[p] for p in rows if not isinstance(p, str)):
                yield sequence, rows
            else:
                tokenizer.counts.too_short += 1

    def _within_budget(
        self, sequences: Iterable[tuple[TokenSequence, dict[Position, int]]]
    ) -> Iterator[TokenSequence]:
        """Yield and count sequences until the next one would exceed a limit."""
        source = self.plan.source
        for sequence, rows in sequences:
            code = split_of(np.array([sequence.sequence]), source.validation, source.test)[0]
            for position, count in rows.items():
                self.rows[position][SPLITS[code]] += count
            if self._exceeds(len(sequence)):
                for position, count in rows.items():
                    self.rows[position][SPLITS[code]] -= count
                return
            self.tokens += len(sequence)
            self.sequences += 1
            self._compare(sequence, int(code))
            yield sequence

    def _compare(self, sequence: TokenSequence, split: int) -> None:
        """Note the sequence's rows, to find out which are the same in two splits."""
        prefix, names = prefix_hashes(sequence.token_id), self.plan.source.used_patterns
        for position, rows in self.repeated.items():
            rows.add(prefix[sequence.places(position, names)], split)

    def _exceeds(self, more_tokens: int) -> bool:
        source = self.plan.source
        rows = [sum(splits.values()) for splits in self.rows.values()]
        size = sum(rows) * self.plan.sites_at_a_position * _row_bytes(self.plan)
        limits = (
            (source.max_tokens, self.tokens + more_tokens),
            (source.max_rows, max(rows)),
            (source.max_bytes, size),
        )
        return any(limit is not None and found > limit for limit, found in limits)

    def _shards(self, windows: Iterable[list[TokenSequence]]) -> Iterator[list[TokenSequence]]:
        """Cut the sequences into shards of at most ``sequences_per_shard`` sequences, of at most
        ``shard_bytes`` bytes over all sites, and of about a thirty-second of the tokens (or one
        sequence)."""
        source, names, before = self.plan.source, self.plan.source.used_patterns, 0
        for window in windows:
            before += sum(map(len, window))
            limit = max(before // SHARDS, SHARD_TOKENS)
            shard, size, tokens = list[TokenSequence](), 0, 0
            for sequence in window:
                rows = sum(len(sequence.places(p, names)) for p in self.rows)
                more = rows * self.plan.sites_at_a_position * _row_bytes(self.plan)
                full = len(shard) == source.sequences_per_shard or tokens >= limit
                if shard and (full or size + more > source.shard_bytes):
                    yield shard
                    shard, size, tokens = [], 0, 0
                shard.append(sequence)
                size, tokens = size + more, tokens + len(sequence)
            if shard:
                yield shard


def training_of(sequences: list[TokenSequence], plan: ExtractionPlan) -> list[TokenSequence]:
    """The sequences whose rows are for training."""
    source = plan.source
    ids = np.array([one.sequence for one in sequences], dtype=np.int64)
    code = split_of(ids, source.validation, source.test)
    return [one for one, split in zip(sequences, code, strict=True) if SPLITS[split] == "train"]


def _shuffled(sequences: Iterable[TokenSequence], seed: int) -> Iterator[list[TokenSequence]]:
    """Yield the sequences in a seeded random order, shuffled within windows of tokens."""
    window: list[TokenSequence] = []
    tokens = number = 0
    for sequence in sequences:
        window.append(sequence)
        tokens += len(sequence)
        if tokens >= SHUFFLED_TOKENS:
            yield _permuted(window, seed, number)
            window, tokens, number = [], 0, number + 1
    if window:
        yield _permuted(window, seed, number)


def _permuted(window: list[TokenSequence], seed: int, number: int) -> list[TokenSequence]:
    return [window[i] for i in np.random.default_rng([seed, number]).permutation(len(window))]


def _row_bytes(plan: ExtractionPlan) -> int:
    return plan.d_in * ITEM_BYTES[plan.source.dtype] + OTHER_COLUMNS_BYTES


def _refuse_unusable(plan: ExtractionPlan, tokens: TokenPlan) -> None:
    source = plan.source
    if not tokens.sequences:
        limits = {
            n: v for n in ("max_tokens", "max_rows", "max_bytes") if (v := getattr(source, n))
        }
        within = f" within {limits}" if limits else ""
        raise UserError(
            f"source.positions {list(source.positions)}: none of the {tokens.counts['documents']} "
            f"texts of {source.dataset!r} is long enough or matches{within}; ask for fewer tokens, "
            "another pattern or a larger limit"
        )
    if tokens.counts["repeated"] == tokens.counts["documents"] - 1 > 0:
        raise UserError(
            f"source: all {tokens.counts['documents']} texts of {source.dataset!r} are the same, so all "
            f"{tokens.sequences} rows are the same at a position; name other texts (source.text, "
            "source.dataset)"
        )
    for position, splits in tokens.rows.items():
        if not any(splits.values()):
            pattern = source.used_patterns[position]
            raise UserError(
                f"source.positions: {position} ({pattern!r}) matches no token of the "
                f"{tokens.counts['documents']} texts of {source.dataset!r}; leave it out, or give "
                "another pattern (source.patterns)"
            )
        for name in ("train", "validation"):
            if not splits[name]:
                raise UserError(
                    f"source: position {position} has no {name} rows ({sum(splits.values())} rows "
                    "in all); read more of the data set (source.sequences), or raise the split's "
                    "fraction (a text that repeats, or a group, lies in one split)"
                )
