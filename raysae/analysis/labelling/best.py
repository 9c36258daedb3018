"""For every feature the events that come first by a key, from one pass: the top ones, or a fair sample.

An event is a feature that is active at a token. What is kept does not depend on the order of the events.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from raysae.activations.splits import hash_of

LEAST_WAITING = 2**18
"""Events that wait to be sorted in, at least, before they are."""


@dataclass(frozen=True)
class Events:
    """Features that are active at tokens; arrays of one item an event."""

    feature: NDArray[np.int64]
    value: NDArray[np.float32]
    sequence: NDArray[np.int64]
    token_index: NDArray[np.int64]
    token_id: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.feature)

    def taken(self, which: NDArray[np.bool_] | NDArray[np.int64]) -> "Events":
        """The events of a mask, or of numbers in their order."""
        return Events(*(column[which] for column in self._columns()))

    def joined(self, other: "Events") -> "Events":
        """These events and others."""
        pairs = zip(self._columns(), other._columns(), strict=True)
        return Events(*(np.concatenate(pair) for pair in pairs))

    def _columns(self) -> tuple[NDArray, ...]:
        return (self.feature, self.value, self.sequence, self.token_index, self.token_id)

    @classmethod
    def none(cls) -> "Events":
        """No event."""
        empty = np.empty(0, np.int64)
        return cls(empty, np.empty(0, np.float32), empty, empty, empty)


def draw_of(events: Events, seed: int) -> NDArray[np.float64]:
    """A number from 0 to 1 for each event that follows from the seed, its feature and its token alone."""
    start = hash_of(np.array([seed], np.int64))[0].astype(np.int64)
    mixed = hash_of(events.sequence ^ start).astype(np.int64)
    mixed = hash_of(mixed ^ events.token_index).astype(np.int64)
    return hash_of(mixed ^ events.feature) / np.float64(2**64)


def ranks(feature: NDArray[np.int64]) -> NDArray[np.int64]:
    """The rank of each event within its feature, from 0; ``feature`` is sorted."""
    starts = np.flatnonzero(np.r_[True, feature[1:] != feature[:-1]])
    sizes = np.diff(np.r_[starts, len(feature)])
    return np.arange(len(feature)) - np.repeat(starts, sizes)


class Best:
    """The ``most`` events of each feature whose key is smallest; ``distinct``: one a sequence."""

    def __init__(self, d_sae: int, most: int, distinct: bool):
        self.most, self.distinct = most, distinct
        self.worst_F = np.full(d_sae, np.inf)
        """Of features that have ``most`` events the largest key that is kept."""
        self._events, self._key = Events.none(), np.empty(0)
        self._waiting: list[tuple[Events, NDArray[np.float64]]] = []
        self._held, self._limit = 0, max(LEAST_WAITING, 2 * d_sae * most)

    def add(self, events: Events, key: NDArray[np.float64]) -> None:
        """Take in events with their keys ``[events]``."""
        good = key <= self.worst_F[events.feature]
        if good.any():
            self._waiting.append((events.taken(good), key[good]))
            self._held += int(good.sum())
        if self._held > self._limit:
            self._sort_in()

    def kept(self) -> Events:
        """The events that are kept, by feature and key."""
        self._sort_in()
        return self._events

    def _sort_in(self) -> None:
        events, key = self._events, self._key
        for more, keys in self._waiting:
            events, key = events.joined(more), np.concatenate([key, keys])
        self._waiting, self._held = [], 0
        events, key = self._first_of_each(events, key) if self.distinct else (events, key)
        order = np.lexsort((events.token_index, events.sequence, key, events.feature))
        events, key = events.taken(order), key[order]
        if not len(events):
            return
        rank = ranks(events.feature)
        full = rank == self.most - 1
        self.worst_F[events.feature[full]] = key[full]
        self._events, self._key = events.taken(rank < self.most), key[rank < self.most]

    def _first_of_each(
        self, events: Events, key: NDArray[np.float64]
    ) -> tuple[Events, NDArray[np.float64]]:
        """The first event of each feature in each sequence."""
        order = np.lexsort((events.token_index, key, events.sequence, events.feature))
        feature, sequence = events.feature[order], events.sequence[order]
        new = np.r_[True, (feature[1:] != feature[:-1]) | (sequence[1:] != sequence[:-1])]
        chosen = order[new[: len(order)]]
        return events.taken(chosen), key[chosen]
