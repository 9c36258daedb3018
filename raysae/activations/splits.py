"""Train, validation and test: a sequence's split follows from its id alone.

The number of workers, the shard size and the order of the sequences do not change it. Where the texts are
known, their split decides which id a sequence gets (``split_of_key``).
"""

import hashlib

import numpy as np
from numpy.typing import NDArray

SPLITS = ("train", "validation", "test")


def split_of(sequence: NDArray[np.int64], validation: float, test: float) -> NDArray[np.int8]:
    """The split (0 train, 1 validation, 2 test) of each sequence id ``[N]``, as an array ``[N]``.

    ``validation`` and ``test`` are the expected fractions of the sequences in those splits.
    """
    return _codes(hash_of(sequence), validation, test)


def split_of_key(key: str, validation: float, test: float) -> int:
    """The split (0 train, 1 validation, 2 test) of a text, or of a group of texts: from its sha256."""
    start = hashlib.sha256(key.encode()).digest()[:8]
    return int(_codes(np.frombuffer(start, ">u8"), validation, test)[0])


def _codes(hashes: NDArray[np.uint64], validation: float, test: float) -> NDArray[np.int8]:
    fraction = hashes / np.float64(2**64)
    code = np.zeros(len(hashes), dtype=np.int8)
    code[fraction < validation + test] = 2
    code[fraction < validation] = 1
    return code


def hash_of(value: NDArray[np.int64]) -> NDArray[np.uint64]:
    """SplitMix64 (Steele, Lea and Flood 2014): neighbouring ids get unrelated hashes."""
    with np.errstate(over="ignore"):
        x = value.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))
