"""Texts and rows that occur more than once, exactly or nearly, and in which splits they lie.

Shapes: N texts, H hashes of a signature, R rows.
"""

import hashlib
import re
import unicodedata
from dataclasses import dataclass, field
from itertools import pairwise
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

HASHES, BANDS = 32, 8
NEARLY = 0.7
"""Share of the pairs of neighbouring words that two texts have in common, from which they count as
near-duplicates: the Jaccard similarity, estimated by MinHash (Broder 1997)."""
MOST_SIGNATURES = 1_000_000
"""Texts that are compared for near-duplicates, at most; later ones are not."""
MOST_ROWS = 2_000_000
"""Rows of a position whose texts are compared, at most; of more, a sample by hash."""
TRAIN = 0

_WORD = re.compile(r"\w+")
_DIGITS = re.compile(r"\d+")
_FACTORS = np.random.default_rng(0).integers(2**63, size=(HASHES, 1), dtype=np.uint64) * 2 + 1


def same_text(text: str) -> str:
    """The form in which texts are compared: without accents, in lower case, with single spaces."""
    plain = unicodedata.normalize("NFKD", text)
    plain = "".join(mark for mark in plain if not unicodedata.combining(mark))
    return " ".join(plain.casefold().split())


@dataclass
class Repeats:
    """The texts that were read: which came before, and which are much like another."""

    texts: int = 0
    repeated: int = 0
    """Texts that are the same as one before."""
    apart: int = 0
    """Of these, texts whose group put them into another split."""
    seen: dict[int, int] = field(default_factory=dict)
    """The split of every text, by its hash."""
    signatures: list[NDArray[np.uint32]] = field(default_factory=list)
    """Of every text that is new, ``[H]``."""
    splits: list[int] = field(default_factory=list)

    def add(self, text: str, split: int) -> bool:
        """Take in a text in the form of ``same_text``. Returns whether it is new."""
        self.texts += 1
        key = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8])
        if key in self.seen:
            self.repeated += 1
            self.apart += self.seen[key] != split
            return False
        self.seen[key] = split
        if len(self.signatures) < MOST_SIGNATURES:
            self.signatures.append(signature(text))
            self.splits.append(split)
        return True

    def record(self) -> dict[str, int]:
        """The numbers: texts that repeat one exactly, and those of them in another split than it; texts
        that nearly repeat one, and held-out texts that nearly repeat a training text."""
        near, leaked = self.near()
        return {
            "repeated": self.repeated,
            "repeated_apart": self.apart,
            "near_duplicates": near,
            "near_training": leaked,
        }

    def near(self) -> tuple[int, int]:
        """The number of texts that nearly repeat one before, and of held-out texts that nearly repeat a
        training text. Exact repeats do not count."""
        if not self.signatures:
            return 0, 0
        signature_NH, split_N = np.stack(self.signatures), np.array(self.splits)
        near_N, leaked_N = np.zeros(len(split_N), bool), np.zeros(len(split_N), bool)
        for band in np.split(signature_NH, BANDS, axis=1):
            group_N = np.unique(band, axis=0, return_inverse=True)[1].reshape(-1)
            order = np.argsort(group_N, kind="stable")
            near_N |= _like_the_first(signature_NH, group_N, order)
            trained_first = order[np.lexsort((split_N[order] != TRAIN, group_N[order]))]
            like_N = _like_the_first(signature_NH, group_N, trained_first, split_N == TRAIN)
            leaked_N |= like_N & (split_N != TRAIN)
        return int(near_N.sum()), int(leaked_N.sum())


def signature(text: str) -> NDArray[np.uint32]:
    """The MinHash signature ``[H]`` of a text's pairs of neighbouring words; all numbers are alike."""
    words = ["", *_WORD.findall(_DIGITS.sub("0", text)), ""]
    pairs = {f"{one} {other}" for one, other in pairwise(words)}
    hashed = np.fromiter(
        (crc32(pair.encode()) for pair in pairs), dtype=np.uint64, count=len(pairs)
    )
    return ((hashed * _FACTORS) >> np.uint64(32)).min(axis=1).astype(np.uint32)


def _like_the_first(
    signature_NH: NDArray[np.uint32],
    group_N: NDArray[np.int64],
    order: NDArray[np.int64],
    may_be_first_N: NDArray[np.bool_] | None = None,
) -> NDArray[np.bool_]:
    """Which texts nearly repeat the first text of their group, in ``order``, itself apart."""
    starts = np.flatnonzero(np.diff(group_N[order], prepend=-1))
    first = np.repeat(order[starts], np.diff([*starts, len(order)]))
    usable = first != order
    if may_be_first_N is not None:
        usable &= may_be_first_N[first]
    one, other = order[usable], first[usable]
    alike = (signature_NH[one] == signature_NH[other]).mean(axis=1) >= NEARLY
    like_N = np.zeros(len(group_N), bool)
    like_N[one[alike]] = True
    return like_N


class RepeatedRows:
    """Held-out rows of a position that are the same as a training row: for a model that reads from left
    to right, those whose sequence begins with the same tokens.

    Of many rows a sample is looked at: those whose hash is divisible by a power of two.
    """

    def __init__(self) -> None:
        self.step = 1
        self.hashes: tuple[list[NDArray[np.uint64]], list[NDArray[np.uint64]]] = ([], [])
        self.kept = 0

    def add(self, prefix: NDArray[np.uint64], split: int) -> None:
        """Take in rows of a split by the hashes ``[R]`` of the tokens that each depends on."""
        taken = prefix[prefix % np.uint64(self.step) == 0]
        self.hashes[split != TRAIN].append(taken)
        self.kept += len(taken)
        while self.kept > MOST_ROWS:
            self.step *= 2
            for hashes in self.hashes:
                joined = np.concatenate([*hashes, np.zeros(0, np.uint64)])
                hashes[:] = [joined[joined % np.uint64(self.step) == 0]]
            self.kept = sum(len(part) for hashes in self.hashes for part in hashes)

    def share(self) -> float:
        """The share of held-out rows that are the same as a training row."""
        trained, held_out = (np.concatenate([*h, np.zeros(0, np.uint64)]) for h in self.hashes)
        return float(np.isin(held_out, trained).mean()) if len(held_out) else 0.0


def prefix_hashes(token_id: NDArray[np.int32]) -> NDArray[np.uint64]:
    """For each token of a sequence, a hash of all tokens up to it, ``[T]``."""
    place = np.arange(len(token_id), dtype=np.uint64) << np.uint64(32)
    mixed = (token_id.astype(np.uint64) + place) * np.uint64(0x9E3779B97F4A7C15)
    mixed ^= mixed >> np.uint64(29)
    mixed *= np.uint64(0xBF58476D1CE4E5B9)
    mixed ^= mixed >> np.uint64(32)
    return np.cumsum(mixed, dtype=np.uint64)
