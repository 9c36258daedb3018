"""The store's sequences by their numbers: attributes of their tokens, and their texts for contexts.

Shapes: N rows, A attributes.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from raysae.activations.sequences import read_sequences
from raysae.analysis.labelling.text_attributes import attribute_names, marked
from raysae.analysis.labelling.token_names import TokenNames, pieces
from raysae.transformer.sequence import TokenSequence, from_table

if TYPE_CHECKING:
    from raysae.activations import Store

CACHED_VALUES = 2**26
"""Attributes of tokens that are kept in memory, in values of 4 bytes."""
CACHED_TOKENS = 2**20
"""Tokens of sequences that are kept in memory: those of a small store are read once for all sites."""


@dataclass(frozen=True)
class PartTokens:
    """The attributes of the tokens of one file of sequences."""

    sequence: NDArray[np.int64]
    """Sorted."""
    first: NDArray[np.int64]
    """The first token of each sequence among all tokens."""
    values_TA: NDArray[np.float32]


class Texts:
    """The sequences of a store that has them. ``columns`` are attributes of whole sequences, by name."""

    def __init__(
        self, store: "Store", columns: Mapping[str, Mapping[int, float]] | None = None,
        alive: Callable[[], None] = lambda: None,
    ):  # fmt: skip
        self.store, self.columns = store, dict(columns or {})
        self.patterns = sorted(store.manifest.patterns)
        self.pocket = store.manifest.source.get("dataset") == "pocket"
        self.names = (*attribute_names(self.patterns, self.pocket), *self.columns)
        """The names of the attributes."""
        self._parts: OrderedDict[int, PartTokens] = OrderedDict()
        self._held = 0
        self._sequences: dict[int, dict[int, TokenSequence]] = {}
        """The sequences of files that are kept, by number."""
        self._pieces: dict[int, list[str]] = {}
        """Their tokens as they are shown."""
        self._tokens_kept = 0
        self._sequence, self._part = self._index(alive)

    def _index(self, alive: Callable[[], None]) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
        """The sequences, sorted, with the number of the file of each."""
        found = []
        for entry in self.store.manifest.sequences:
            file = self.store.files.file(entry.file)
            with file.told():
                found.append(read_sequences(file, ["sequence"])["sequence"].to_numpy())
            alive()
        sequence = np.concatenate(found) if found else np.empty(0, np.int64)
        part = np.repeat(np.arange(len(found), dtype=np.int32), [len(one) for one in found])
        order = np.argsort(sequence, kind="stable")
        return sequence[order], part[order]

    def attributes(
        self, sequence: NDArray[np.int64], token_index: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        """The attributes of tokens, ``[N, A]``; NaN where one is not known."""
        values_NA = np.full((len(sequence), len(self.names)), np.nan, np.float32)
        part_N = self._part_of(sequence)
        for part in np.unique(part_N[part_N >= 0]):
            here = np.flatnonzero(part_N == part)
            tokens = self._tokens(int(part))
            place = np.searchsorted(tokens.sequence, sequence[here])
            values_NA[here] = tokens.values_TA[tokens.first[place] + token_index[here]]
        return values_NA

    def _part_of(self, sequence: NDArray[np.int64]) -> NDArray[np.int64]:
        """The file of each sequence; -1 for one that is in none."""
        if not len(self._sequence):
            return np.full(len(sequence), -1)
        place = np.minimum(np.searchsorted(self._sequence, sequence), len(self._sequence) - 1)
        return np.where(self._sequence[place] == sequence, self._part[place], -1)

    def _tokens(self, part: int) -> PartTokens:
        if part not in self._parts:
            made = self._made(part)
            self._held += made.values_TA.size
            while self._parts and self._held > CACHED_VALUES:
                self._held -= self._parts.popitem(last=False)[1].values_TA.size
            self._parts[part] = made
        self._parts.move_to_end(part)
        return self._parts[part]

    def _made(self, part: int) -> PartTokens:
        sequences = sorted(
            from_table(self.store.sequences(self.store.manifest.sequences[part])),
            key=lambda one: one.sequence,
        )
        found = marked(sequences, self.patterns, self.pocket)
        lengths = np.array([len(one) for one in sequences], np.int64)
        ids = np.array([one.sequence for one in sequences], np.int64)
        columns = [self._column(values, ids, lengths) for values in self.columns.values()]
        values_TA = np.column_stack([found.values_TA, *columns]) if columns else found.values_TA
        return PartTokens(ids, np.cumsum(lengths) - lengths, values_TA)

    def _column(
        self, values: Mapping[int, float], ids: NDArray[np.int64], lengths: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        """A sequence's value for each of its tokens; NaN where it has none."""
        of_sequence = [values.get(int(number), np.nan) for number in ids]
        return np.repeat(np.array(of_sequence, np.float32), lengths)

    def sequences(self, wanted: NDArray[np.int64]) -> Iterator[TokenSequence]:
        """The sequences of these numbers, file by file; those that are in none are left out."""
        wanted = np.unique(wanted)
        parts = self._part_of(wanted)
        for part in np.unique(parts[parts >= 0]):
            yield from self._of_part(int(part), wanted[parts == part])

    def _of_part(self, part: int, wanted: NDArray[np.int64]) -> list[TokenSequence]:
        """The sequences of these numbers of one file, in its order."""
        if part not in self._sequences:
            table = self.store.sequences(self.store.manifest.sequences[part])
            tokens = int(pc.list_value_length(table["token_id"]).to_numpy().sum())
            if self._tokens_kept + tokens > CACHED_TOKENS:
                return from_table(table.filter(pa.array(np.isin(table["sequence"], wanted))))
            self._tokens_kept += tokens
            self._sequences[part] = {one.sequence: one for one in from_table(table)}
        numbers = set(wanted.tolist())
        return [one for number, one in self._sequences[part].items() if number in numbers]

    def pieces(self, sequence: TokenSequence, names: TokenNames) -> list[str]:
        """The tokens of a sequence as they are shown; ``names`` are always the same."""
        if sequence.sequence in self._pieces:
            return self._pieces[sequence.sequence]
        shown = pieces(sequence, names)
        if int(self._part_of(np.array([sequence.sequence]))[0]) in self._sequences:
            self._pieces[sequence.sequence] = shown
        return shown


def numbers_of(values: Mapping[int, object]) -> dict[str, dict[int, float]]:
    """Values of sequences as numbers: true is 1, and each text is an attribute of its own, 1 where it is
    the value and 0 elsewhere. Texts beyond the commonest eight are left out."""
    if all(isinstance(value, bool | int | float) for value in values.values()):
        return {"": {number: float(value) for number, value in values.items()}}  # type: ignore[arg-type]
    texts = {number: str(value) for number, value in values.items()}
    kinds: dict[str, int] = {}
    for text in texts.values():
        kinds[text] = kinds.get(text, 0) + 1
    common: Sequence[str] = sorted(kinds, key=lambda kind: (-kinds[kind], kind))[:8]
    return {
        f" = {kind}": {number: float(text == kind) for number, text in texts.items()}
        for kind in common
    }
