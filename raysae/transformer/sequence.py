"""A sequence as the transformer reads it, the rules by which texts become sequences, and their table."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raysae.activations.schema import SEQUENCES_SCHEMA
from raysae.sites import ALL, Position


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
    """Regular expressions by name, in sorted order; ``role:NAME`` is a chat's messages of a role."""
    validation: float = 0.0
    """Fraction of the sequences held out for validation."""
    test: float = 0.0
    """Fraction of the sequences reserved for a last test."""
    cut: Literal["start", "end"] = "end"
    """Which end a text longer than the context loses."""
    repeats: Literal["keep", "drop"] = "keep"
    """Whether a text that came before is read again."""
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

    @cached_property
    def text_index(self) -> NDArray[np.int64]:
        """The indices of the tokens that count as text."""
        return np.flatnonzero(self.is_text)

    def places(self, position: Position, patterns: Iterable[str] = ()) -> NDArray[np.int64]:
        """The indices of the tokens at ``position``; empty when the sequence is too short.

        ``patterns`` are the names of all patterns.
        """
        text_index = self.text_index
        if position == ALL:
            return text_index
        if isinstance(position, str):
            bit = 1 << sorted(patterns).index(position)
            return text_index[(self.patterns[text_index] & bit) > 0]
        inside = -len(text_index) <= position < len(text_index)
        return text_index[[position]] if inside else text_index[:0]


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
