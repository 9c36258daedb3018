"""From documents to sequences: tokenizing, packing, and marking each token (text, special, pattern)."""

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raysae.activations.schema import SEQUENCES_SCHEMA
from raysae.activations.splits import split_of
from raysae.errors import UserError
from raysae.sites import ALL, Position
from raysae.transformer.texts import Document

TOKENIZER_BATCH = 500
JOINT = "\n"
"""Separates the texts of a packed sequence in its ``text``."""


@dataclass(frozen=True)
class TokenRules:
    """How texts become sequences of tokens."""

    context_length: int
    """Tokens of a sequence, at most."""
    packing: bool = False
    """Whether texts are joined into sequences of full length, those of each split apart."""
    special_tokens: bool = False
    """Whether special tokens count as tokens of a text."""
    patterns: Mapping[str, str] = field(default_factory=dict)
    """Regular expressions by name, in sorted order."""
    validation: float = 0.0
    """Fraction of the sequences held out for validation."""
    test: float = 0.0
    """Fraction of the sequences reserved for a last test."""
    prefix: str = ""
    """What stands before a setting's name in error messages, such as ``source.``."""


@dataclass(frozen=True)
class TokenSequence:
    """One sequence as the transformer reads it; its arrays have one item per token, ``[tokens]``."""

    sequence: int
    documents: list[int]
    """Rows of the data set that the sequence was made of."""
    text: str
    token_id: NDArray[np.int32]
    token_start: NDArray[np.int32]
    """First character of the token in ``text``; -1 for special tokens and when it is not known."""
    token_end: NDArray[np.int32]
    is_text: NDArray[np.bool_]
    """Whether the token counts as text; special tokens do only with ``TokenRules.special_tokens``."""
    patterns: NDArray[np.int32]
    """Bit i is set when the token matches the i-th pattern, with the patterns sorted by name."""

    def __len__(self) -> int:
        return len(self.token_id)

    def places(self, position: Position, patterns: Iterable[str] = ()) -> NDArray[np.int64]:
        """The indices of the tokens at ``position``; empty when the sequence is too short.

        ``patterns`` are the names of all patterns.
        """
        text_index = np.flatnonzero(self.is_text)
        if position == ALL:
            return text_index
        if isinstance(position, str):
            bit = 1 << sorted(patterns).index(position)
            return text_index[(self.patterns[text_index] & bit) > 0]
        inside = -len(text_index) <= position < len(text_index)
        return text_index[[position]] if inside else text_index[:0]


@dataclass
class Counts:
    """How many documents were read, cut and left out."""

    documents: int = 0
    cut: int = 0
    """Documents cut because they are longer than the context (not counted when packing)."""
    too_short: int = 0
    """Sequences left out because they are too short for a position, or no pattern matches."""


@dataclass
class _Encoded:
    """The tokens of one document, or a part of them."""

    document: Document
    token_id: NDArray[np.int32]
    special: NDArray[np.bool_]
    start: NDArray[np.int32]
    end: NDArray[np.int32]
    patterns: NDArray[np.int32]
    cut: bool


class Tokenizer:
    """A Hugging Face tokenizer with the recipe's rules: context, special tokens, patterns, packing.

    Raises UserError when a pattern needs character offsets and the tokenizer has none.
    """

    def __init__(self, tokenizer: Any, rules: TokenRules):
        self.tokenizer, self.rules = tokenizer, rules
        self.fast = bool(getattr(tokenizer, "is_fast", False))
        self.patterns = [re.compile(p) for p in rules.patterns.values()]
        self.counts = Counts()
        self.texts = hashlib.sha256()
        if self.patterns and not self.fast:
            raise UserError(
                f"{rules.prefix}positions: {', '.join(rules.patterns)} need a tokenizer that tells "
                f"where its tokens lie in the text; {type(tokenizer).__name__} does not"
            )

    def sequences(self, documents: Iterable[Document]) -> Iterator[TokenSequence]:
        """Yield the documents' sequences in order: one per document, or packed.

        Raises UserError when packing leaves no room beside the special tokens.
        """
        return self._packed(documents) if self.rules.packing else self._one_each(documents)

    def _one_each(self, documents: Iterable[Document]) -> Iterator[TokenSequence]:
        for encoded in self._encode(documents, whole=False):
            self.counts.cut += encoded.cut
            yield TokenSequence(
                encoded.document.row,
                [encoded.document.row],
                encoded.document.text[: _reach(encoded)],
                encoded.token_id,
                encoded.start,
                encoded.end,
                np.ones(len(encoded.token_id), bool) if self.rules.special_tokens else ~encoded.special,
                encoded.patterns,
            )  # fmt: skip

    def _packed(self, documents: Iterable[Document]) -> Iterator[TokenSequence]:
        """Sequences of full length. Each holds documents of one split only, so splits never mix."""
        frame = _Frame.of(self.tokenizer, self.rules)
        packers = [_Packer(frame, self.rules) for _ in range(3)]
        numbers = _numbers_by_split(self.rules)
        for encoded in self._encode(documents, whole=True):
            split = _split(encoded.document.row, self.rules)
            packers[split].add(encoded)
            yield from packers[split].full(numbers[split])
        for split, packer in enumerate(packers):
            yield from packer.rest(numbers[split])

    def _encode(self, documents: Iterable[Document], whole: bool) -> Iterator[_Encoded]:
        options = (
            {"add_special_tokens": False, "verbose": False}
            if whole
            else {"truncation": True, "max_length": self.rules.context_length}
        )
        waiting = iter(documents)
        while batch := list(islice(waiting, TOKENIZER_BATCH)):
            encoded = self.tokenizer(
                [document.text for document in batch], return_special_tokens_mask=True,
                return_offsets_mapping=self.fast, return_attention_mask=False, **options,
            )  # fmt: skip
            for number, document in enumerate(batch):
                self.counts.documents += 1
                self.texts.update(document.text.encode() + b"\0")
                yield self._of(document, encoded, number)

    def _of(self, document: Document, encoded: Any, number: int) -> _Encoded:
        token_id = np.array(encoded["input_ids"][number], dtype=np.int32)
        special = np.array(encoded["special_tokens_mask"][number], dtype=bool)
        offsets = encoded["offset_mapping"][number] if self.fast else [(-1, -1)] * len(token_id)
        span = np.array(offsets, dtype=np.int32).reshape(-1, 2)
        span[special] = -1
        cut = (
            bool(encoded.encodings[number].overflowing)
            if self.fast
            else len(token_id) == self.rules.context_length
        )
        patterns = self._matches(document.text, span[:, 0], span[:, 1])
        return _Encoded(document, token_id, special, span[:, 0], span[:, 1], patterns, cut)

    def _matches(self, text: str, start: NDArray[Any], end: NDArray[Any]) -> NDArray[np.int32]:
        bits = np.zeros(len(start), dtype=np.int32)
        for number, pattern in enumerate(self.patterns):
            covered = np.zeros(len(text) + 1, dtype=np.int64)
            for match in pattern.finditer(text):
                first, last = match.span(1 if pattern.groups else 0)
                covered[first + 1 : last + 1] = 1
            through = covered.cumsum()
            # a special token has start = end = -1 and so covers nothing
            bits |= ((through[end] - through[start]) > 0).astype(np.int32) << number
        return bits


def tokenizer_hash(tokenizer: Any) -> str:
    """The sha256 of the tokenizer's whole definition, or of the vocabulary of a slow tokenizer."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    text = backend.to_str() if backend is not None else str(sorted(tokenizer.get_vocab().items()))
    return hashlib.sha256(text.encode()).hexdigest()


def to_table(sequences: list[TokenSequence]) -> pa.Table:
    """The sequences as a table of ``SEQUENCES_SCHEMA``."""
    columns = {name: [getattr(s, name) for s in sequences] for name in SEQUENCES_SCHEMA.names}
    return pa.table(columns, schema=SEQUENCES_SCHEMA)


def from_table(table: pa.Table) -> list[TokenSequence]:
    """The sequences of a table of ``SEQUENCES_SCHEMA``; the reverse of ``to_table``."""
    names = ("sequence", "documents", "text")
    arrays = ("token_id", "token_start", "token_end", "is_text", "patterns")
    rows = zip(
        *(table[name].to_pylist() for name in names),
        *([item.values.to_numpy(zero_copy_only=False) for item in table[name]] for name in arrays),
        strict=True,
    )
    return [TokenSequence(*row) for row in rows]


def _reach(encoded: _Encoded) -> int | None:
    """The end of the last token in the document's text; None when the offsets are not known."""
    reach = int(encoded.end.max(initial=-1))
    return None if reach < 0 else reach


def _split(number: int, rules: TokenRules) -> int:
    return int(split_of(np.array([number]), rules.validation, rules.test)[0])


def _numbers_by_split(rules: TokenRules) -> list[Iterator[int]]:
    """For each split, an endless iterator over the sequence ids that belong to it, in order."""

    def of(split: int) -> Iterator[int]:
        start = 0
        while True:
            block = np.arange(start, start + 1024)
            code = split_of(block, rules.validation, rules.test)
            yield from block[code == split].tolist()
            start += 1024

    return [of(split) for split in range(3)]


@dataclass(frozen=True)
class _Frame:
    """The special tokens around a sequence, and the one between the documents of a packed one."""

    before: list[int]
    after: list[int]
    between: list[int]
    room: int
    """Tokens available for the documents."""

    @classmethod
    def of(cls, tokenizer: Any, rules: TokenRules) -> "_Frame":
        """The frame that the tokenizer puts around a short text."""
        probe = tokenizer("a", return_special_tokens_mask=True)
        ids, mask = probe["input_ids"], probe["special_tokens_mask"]
        first = mask.index(0) if 0 in mask else len(mask)
        last = len(mask) - mask[::-1].index(0) if 0 in mask else len(mask)
        separators = (tokenizer.eos_token_id, tokenizer.sep_token_id, tokenizer.bos_token_id)
        between = [token for token in separators if token is not None][:1]
        room = rules.context_length - first - (len(ids) - last)
        if room < 1:
            raise UserError(
                f"{rules.prefix}context_length is {rules.context_length}; the tokenizer's special tokens "
                "alone fill it"
            )
        return cls(ids[:first], ids[last:], between, room)


@dataclass
class _Packer:
    """Joins the documents of one split and cuts the sequence of their tokens to length."""

    frame: _Frame
    rules: TokenRules
    pieces: list[_Encoded] = field(default_factory=list)
    waiting: int = 0

    def add(self, encoded: _Encoded) -> None:
        if self.pieces and self.frame.between:
            self._append(_separator(self.frame.between, encoded.document))
        self._append(encoded)

    def full(self, numbers: Iterator[int]) -> Iterator[TokenSequence]:
        """Yield the sequences that have full length."""
        while self.waiting >= self.frame.room:
            yield self._take(self.frame.room, next(numbers))

    def rest(self, numbers: Iterator[int]) -> Iterator[TokenSequence]:
        """Yield the last sequence, which is shorter, when any text is left."""
        if any(not piece.special.all() for piece in self.pieces):
            yield self._take(self.waiting, next(numbers))

    def _append(self, encoded: _Encoded) -> None:
        self.pieces.append(encoded)
        self.waiting += len(encoded.token_id)

    def _take(self, room: int, number: int) -> TokenSequence:
        taken = []
        while room and self.pieces:
            piece = self.pieces.pop(0)
            if len(piece.token_id) > room:
                self.pieces.insert(0, _slice(piece, slice(room, None)))
                piece = _slice(piece, slice(room))
            taken.append(piece)
            room -= len(piece.token_id)
        self.waiting -= sum(len(piece.token_id) for piece in taken)
        return _joined(taken, self.frame, number, self.rules.special_tokens)


def _slice(piece: _Encoded, part: slice) -> _Encoded:
    return _Encoded(
        piece.document, piece.token_id[part], piece.special[part], piece.start[part],
        piece.end[part], piece.patterns[part], piece.cut,
    )  # fmt: skip


def _separator(ids: list[int], document: Document) -> _Encoded:
    none = np.full(len(ids), -1, dtype=np.int32)
    return _Encoded(
        document, np.array(ids, dtype=np.int32), np.ones(len(ids), bool), none, none, none * 0,
        False,
    )  # fmt: skip


def _joined(pieces: list[_Encoded], frame: _Frame, number: int, specials: bool) -> TokenSequence:
    """Join pieces of documents into one sequence; offsets count characters of the joined text."""
    edges = [_separator(frame.before, pieces[0].document), *pieces]
    edges.append(_separator(frame.after, pieces[-1].document))
    texts: list[str] = []
    starts, ends, length = [], [], 0
    for piece in edges:
        known = piece.start >= 0
        shift = 0
        if known.any():
            first, last = int(piece.start[known].min()), int(piece.end[known].max())
            shift = length - first
            texts.append(piece.document.text[first:last])
            length += last - first + len(JOINT)
        starts.append(np.where(known, piece.start + shift, -1))
        ends.append(np.where(known, piece.end + shift, -1))
    special = np.concatenate([piece.special for piece in edges])
    rows = [piece.document.row for piece in pieces if not piece.special.all()]
    return TokenSequence(
        number,
        list(dict.fromkeys(rows)),
        JOINT.join(texts),
        np.concatenate([piece.token_id for piece in edges]),
        np.concatenate(starts).astype(np.int32),
        np.concatenate(ends).astype(np.int32),
        np.ones(len(special), bool) if specials else ~special,
        np.concatenate([piece.patterns for piece in edges]),
    )
