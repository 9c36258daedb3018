"""Packing: texts of one split joined, and cut into sequences of full length."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raysae.errors import UserError
from raysae.transformer.sequence import TokenRules, TokenSequence
from raysae.transformer.texts import Document

JOINT = "\n"
"""Separates the texts of a packed sequence in its ``text``."""


@dataclass
class Encoded:
    """The tokens of one document, or a part of them."""

    document: Document
    token_id: NDArray[np.int32]
    special: NDArray[np.bool_]
    start: NDArray[np.int32]
    end: NDArray[np.int32]
    patterns: NDArray[np.int32]
    cut: bool
    """Whether the document is longer than the context and lost an end."""


@dataclass(frozen=True)
class Frame:
    """The special tokens around a sequence, and the one between the documents of a packed one."""

    before: list[int]
    after: list[int]
    between: list[int]
    room: int
    """Tokens available for the documents."""

    @classmethod
    def of(cls, tokenizer: Any, rules: TokenRules) -> "Frame":
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
class Packer:
    """Joins the documents of one split and cuts the sequence of their tokens to length."""

    frame: Frame
    rules: TokenRules
    pieces: list[Encoded] = field(default_factory=list)
    waiting: int = 0

    def add(self, encoded: Encoded) -> None:
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

    def _append(self, encoded: Encoded) -> None:
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


def _slice(piece: Encoded, part: slice) -> Encoded:
    return Encoded(
        piece.document, piece.token_id[part], piece.special[part], piece.start[part],
        piece.end[part], piece.patterns[part], piece.cut,
    )  # fmt: skip


def _separator(ids: list[int], document: Document) -> Encoded:
    none = np.full(len(ids), -1, dtype=np.int32)
    return Encoded(
        document, np.array(ids, dtype=np.int32), np.ones(len(ids), bool), none, none, none * 0,
        False,
    )  # fmt: skip


def _joined(pieces: list[Encoded], frame: Frame, number: int, specials: bool) -> TokenSequence:
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
