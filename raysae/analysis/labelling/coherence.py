"""Whether a feature's contexts are alike: the mean Jaccard index of their words.

Shapes: C contexts, W words.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from raysae.analysis.labelling.contexts import of_features

WORD = re.compile(r"\w+|[^\w\s]")
CONTROLS = 256
"""Sets of contexts of drawn features that the control is made of."""


@dataclass(frozen=True)
class Coherence:
    """The coherence of each feature that has contexts."""

    of_feature: dict[int, float]
    """NaN with fewer than two unique texts."""
    texts: dict[int, int]
    """Unique texts."""
    control: NDArray[np.float64]
    """That of contexts drawn from all features of the site, as many as a feature has."""


def coherence(feature: NDArray[np.int64], texts: Sequence[str], seed: int) -> Coherence:
    """The coherence of the contexts ``texts`` of features, in order of ``feature``."""
    words = [frozenset(WORD.findall(text.lower())) for text in texts]
    found, unique = {}, {}
    for number, rows in of_features(feature):
        kinds = list(dict.fromkeys(texts[rows]))
        place = {text: words[rows.start + at] for at, text in enumerate(texts[rows])}
        found[number], unique[number] = jaccard([place[kind] for kind in kinds]), len(kinds)
    return Coherence(found, unique, _control(words, list(unique.values()), seed))


def jaccard(sets: Sequence[frozenset[str]]) -> float:
    """The mean over pairs of sets of what they share, as a fraction of what they hold together.

    NaN with fewer than two sets; two empty sets share all.
    """
    if len(sets) < 2:
        return float("nan")
    number = {word: place for place, word in enumerate(sorted(frozenset().union(*sets)))}
    has_CW = np.zeros((len(sets), len(number)), np.float32)
    for row, words in enumerate(sets):
        has_CW[row, [number[word] for word in words]] = 1
    shared_CC = has_CW @ has_CW.T
    sizes_C = has_CW.sum(1)
    either_CC = sizes_C[:, None] + sizes_C - shared_CC
    index_CC = np.divide(shared_CC, either_CC, out=np.ones_like(shared_CC), where=either_CC > 0)
    return float(index_CC[_pairs(len(sets))].mean())


@lru_cache(maxsize=256)
def _pairs(sets: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The rows and columns of all pairs."""
    return np.triu_indices(sets, 1)


def _control(
    words: Sequence[frozenset[str]], sizes: Sequence[int], seed: int
) -> NDArray[np.float64]:
    """The coherence of drawn contexts, with the sizes that features have."""
    several = [size for size in sizes if size > 1]
    if not several:
        return np.empty(0)
    random = np.random.default_rng(seed)
    found = []
    for _ in range(CONTROLS):
        size = several[random.integers(len(several))]
        drawn = random.integers(len(words), size=size)
        found.append(jaccard([words[number] for number in drawn]))
    return np.array(found)
