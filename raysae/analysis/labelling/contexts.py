"""Contexts of features: which tokens are shown, the text around each, and the activations in it.

Shapes: C contexts.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raysae.analysis.labelling.best import Events, draw_of, ranks
from raysae.analysis.labelling.rows import Chunk
from raysae.analysis.labelling.texts import Texts
from raysae.analysis.labelling.token_names import TokenNames
from raysae.transformer.sequence import TokenSequence

TOP, QUANTILE = "top", "quantile"


@dataclass(frozen=True)
class Chosen:
    """The contexts of a site's features, ordered by feature, kind, band and rank."""

    events: Events
    band: NDArray[np.int64]
    """The band of activations that each is from, 0 being the weakest; -1 for the top ones."""
    rank: NDArray[np.int64]
    """Its place among those of its feature and band, from 0."""
    low: NDArray[np.float64]
    """The least activation of the band; NaN for the top ones."""
    high: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.events)

    def taken(self, which: NDArray) -> "Chosen":
        """Some of the contexts."""
        columns = (self.band, self.rank, self.low, self.high)
        return Chosen(self.events.taken(which), *(column[which] for column in columns))


def choose(
    top: Events, sample: Events, labelled: NDArray[np.int64], bands: int, per_band: int, seed: int
) -> Chosen:
    """The contexts of the features ``labelled``: the top ones, and of each band of quantiles a few.

    The bands part the activations of ``sample`` (a fair sample of each feature's, or all of them) at
    their quantiles: with four, those of the weakest quarter are band 0. Within a band contexts are drawn.
    """
    top = top.taken(np.isin(top.feature, labelled))
    nothing = np.full(len(top), np.nan)
    kept = Chosen(top, np.full(len(top), -1), ranks(top.feature), nothing, nothing)
    sample = sample.taken(np.isin(sample.feature, labelled))
    banded = _banded(sample, bands, per_band, seed)
    pairs = (
        (getattr(kept, name), getattr(banded, name)) for name in ("band", "rank", "low", "high")
    )
    joined = Chosen(kept.events.joined(banded.events), *(np.concatenate(pair) for pair in pairs))
    order = np.lexsort((joined.rank, joined.band, joined.events.feature))
    return joined.taken(order)


def _banded(sample: Events, bands: int, per_band: int, seed: int) -> Chosen:
    """Up to ``per_band`` events of each band of each feature, drawn from ``sample``."""
    order = np.lexsort((sample.token_index, sample.sequence, sample.value, sample.feature))
    sample = sample.taken(order)
    size = np.bincount(sample.feature, minlength=1)
    start = np.cumsum(size) - size
    n, rank = size[sample.feature], ranks(sample.feature)
    band = rank * bands // np.maximum(n, 1)
    draw = draw_of(sample, seed + 1)
    shuffled = np.lexsort((draw, band, sample.feature))
    place = ranks(sample.feature[shuffled] * bands + band[shuffled])
    kept = shuffled[place < per_band]
    feature, band = sample.feature[kept], band[kept]
    first = start[feature] - (-band * size[feature] // bands)
    after = start[feature] - (-(band + 1) * size[feature] // bands)
    value = sample.value.astype(np.float64)
    return Chosen(
        sample.taken(kept), band, place[place < per_band], value[first], value[after - 1]
    )  # fmt: skip


class Neighbours:
    """The activations of each context's feature at all tokens of its sequence, from a second pass."""

    def __init__(self, chosen: Chosen):
        self.sequence = np.unique(chosen.events.sequence)
        """The sequences whose rows are needed."""
        self._pair = np.unique(self._key(chosen.events.feature, chosen.events.sequence))
        self._found: list[tuple[NDArray, NDArray, NDArray]] = []
        self._sorted: tuple[NDArray, NDArray, NDArray] | None = None

    def _key(self, feature: NDArray, sequence: NDArray) -> NDArray[np.int64]:
        return feature * len(self.sequence) + np.searchsorted(self.sequence, sequence)

    def wanted(self, sequence: NDArray[np.int64]) -> NDArray[np.int64]:
        """The rows of the sequences that have contexts."""
        if not len(self.sequence):
            return np.empty(0, np.int64)
        place = np.minimum(np.searchsorted(self.sequence, sequence), len(self.sequence) - 1)
        return np.flatnonzero(self.sequence[place] == sequence)

    def add(self, chunk: Chunk) -> None:
        """Take in a chunk whose rows are all ``wanted``."""
        key = self._key(chunk.feature, chunk.rows.sequence[chunk.row])
        place = np.minimum(np.searchsorted(self._pair, key), len(self._pair) - 1)
        hit = np.flatnonzero(self._pair[place] == key)
        index = chunk.rows.token_index[chunk.row[hit]]
        self._found.append((place[hit], index, chunk.value[hit]))

    def of(self, feature: int, sequence: int) -> tuple[NDArray, NDArray]:
        """The tokens at which the feature is active in the sequence, and its activations there."""
        pair, index, value = self._in_order()
        wanted = np.searchsorted(
            self._pair,
            self._key(np.int64(feature), np.int64(sequence)),  # type: ignore[arg-type]
        )
        low, high = np.searchsorted(pair, [wanted, wanted + 1])
        return index[low:high], value[low:high]

    def _in_order(self) -> tuple[NDArray, NDArray, NDArray]:
        if self._sorted is None:
            none = (np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32))
            columns = [np.concatenate(some) for some in zip(none, *self._found, strict=True)]
            order = np.lexsort((columns[1], columns[0]))
            self._sorted = (columns[0][order], columns[1][order], columns[2][order])
        return self._sorted


@dataclass(frozen=True)
class Window:
    """The text around a context's token."""

    document: int | None
    """The data set's row that the sequence was made of; None for one of several."""
    pieces: list[str]
    activations: list[float | None]
    """At each token; None where the store has no row of it."""
    marked: int = 0
    """The place of the context's token among the pieces."""

    @property
    def text(self) -> str:
        """The window's text."""
        return "".join(self.pieces)


NO_WINDOW = Window(None, [], [])
"""The window of a store without texts."""


def windows(
    chosen: Chosen, texts: Texts, names: TokenNames, reach: int, neighbours: Neighbours | None,
    alive: Callable[[], None],
) -> list[Window]:  # fmt: skip
    """The windows of all contexts, ``reach`` tokens before and after each, in their order.

    Without ``neighbours`` only the context's own token has an activation.
    """
    found = [NO_WINDOW] * len(chosen)
    order = np.argsort(chosen.events.sequence, kind="stable")
    by_sequence = chosen.events.sequence[order]
    for number, sequence in enumerate(texts.sequences(by_sequence)):
        low, high = np.searchsorted(by_sequence, [sequence.sequence, sequence.sequence + 1])
        shown = texts.pieces(sequence, names)
        for context in order[low:high].tolist():
            found[context] = _window(sequence, shown, chosen.events, context, reach, neighbours)
        if number % 256 == 0:
            alive()
    return found


def _window(
    sequence: TokenSequence, shown: list[str], events: Events, context: int, reach: int,
    neighbours: Neighbours | None,
) -> Window:  # fmt: skip
    token = int(events.token_index[context])
    start, stop = max(token - reach, 0), min(token + reach + 1, len(sequence))
    activations: list[float | None] = [None] * (stop - start)
    if neighbours is not None:
        there = sequence.is_text[start:stop].tolist()
        activations = [0.0 if text else None for text in there]
        where, value = neighbours.of(int(events.feature[context]), sequence.sequence)
        for place, one in zip(where.tolist(), value.tolist(), strict=True):
            if start <= place < stop:
                activations[place - start] = one
    activations[token - start] = float(events.value[context])
    document = sequence.documents[0] if len(sequence.documents) == 1 else None
    return Window(document, shown[start:stop], activations, token - start)


def contexts_table(
    columns: dict[str, object], chosen: Chosen, windows: Sequence[Window], names: TokenNames,
    splits: NDArray,
) -> pa.Table:  # fmt: skip
    """The contexts as a table, a row each; ``columns`` are constant. See ``CONTEXT_COLUMNS``."""
    events, n = chosen.events, len(chosen)
    top = chosen.band < 0
    token = [names[number] for number in events.token_id.tolist()]
    marked = np.array([window.marked for window in windows], np.int64)
    floats = pa.list_(pa.float32())
    return pa.table(
        {
            **{name: pa.array([value] * n, kind_of(value)) for name, value in columns.items()},
            "feature": events.feature,
            "kind": pa.array(np.where(top, TOP, QUANTILE).tolist(), pa.string()),
            "band": pa.array(chosen.band, mask=top),
            "band_low": pa.array(chosen.low.astype(np.float32), mask=top),
            "band_high": pa.array(chosen.high.astype(np.float32), mask=top),
            "rank": chosen.rank,
            "activation": events.value,
            "split": pa.array(splits.tolist(), pa.string()),
            "sequence": events.sequence,
            "document": pa.array([window.document for window in windows], pa.int64()),
            "token_index": events.token_index,
            "token_id": events.token_id,
            "token": pa.array(token, pa.string()),
            "text": pa.array([window.text for window in windows], pa.string()),
            "tokens": pa.array([window.pieces for window in windows], pa.list_(pa.string())),
            "activations": pa.array([window.activations for window in windows], floats),
            "marked": pa.array(marked, mask=np.array([not one.pieces for one in windows], bool)),
        }
    )


def kind_of(value: object) -> pa.DataType:
    """The Arrow type of a constant column."""
    return pa.int64() if isinstance(value, int) else pa.string()


def of_features(feature: NDArray[np.int64]) -> Iterator[tuple[int, slice]]:
    """Each feature of a sorted column, with the rows that are its."""
    starts = np.flatnonzero(np.r_[len(feature) > 0, feature[1:] != feature[:-1]][: len(feature)])
    for start, stop in zip(starts, np.r_[starts[1:], len(feature)], strict=True):
        yield int(feature[start]), slice(int(start), int(stop))
