"""Texts that occur several times in a file: they share a sequence id, and so a split, by their tokens.

Shapes: S sequences, T tokens of each, N rows.
"""

import numpy as np
from numpy.typing import NDArray

from raysae.activations.importing.columns import make_column
from raysae.activations.importing.source import Source

_ODD = np.uint64(0x9E3779B97F4A7C15)


def with_ids_of_tokens(source: Source, replace_ids: bool) -> Source:
    """The source whose sequences of the same tokens, padding left out, have the same id: the number of
    the first of them. Their count is noted.

    Without ``replace_ids`` the ids stay, and only sequences of the same tokens with other ids are noted.
    """
    tokens = source.column("token_id")
    if not source.tokenwise or tokens is None:
        return source
    hash_S = token_hashes(source)
    _, first, which = np.unique(hash_S, return_index=True, return_inverse=True)
    first_S = first[which]
    if not replace_ids:
        return _noting_other_ids(source, first_S)
    once = source.sequences // source.copies
    repeated = once - len(np.unique(first_S[:once]))
    column = make_column("sequence", f"the tokens ({tokens.name})", first_S, source)
    source = source.with_column("sequence", column)
    if not repeated:
        return source
    return source.noting(
        f"{repeated:,} of {once:,} sequences have the same tokens as an earlier one; they share its "
        "sequence id, so that a text lies in one split"
    )


def token_hashes(source: Source) -> NDArray[np.uint64]:
    """A hash of each sequence's tokens and their order, padding left out, ``[S]``."""
    tokens = source.column("token_id")
    assert tokens is not None, "asked by the caller"
    kept = source.kept_rows()
    number = source.sequence_of(kept)
    starts = np.flatnonzero(np.diff(number, prepend=-1))
    place = np.arange(len(kept)) - np.repeat(starts, np.diff([*starts, len(kept)]))
    mixed = mix(mix(tokens.at(kept).astype(np.uint64)) + place.astype(np.uint64) * _ODD)
    hash_S = np.zeros(source.sequences, np.uint64)
    hash_S[number[starts]] = np.add.reduceat(mixed, starts)
    return hash_S


def mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of SplitMix64: neighbouring numbers get unrelated ones."""
    with np.errstate(over="ignore"):
        x = (x + _ODD) ^ ((x + _ODD) >> np.uint64(30))
        x = x * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))


def _noting_other_ids(source: Source, first_S: NDArray[np.int64]) -> Source:
    """The source with a note on sequences of the same tokens but other ids."""
    ids = source.ids
    assert ids is not None, "asked by the caller"
    start_S = np.cumsum(source.lengths) - source.lengths
    filled = source.lengths > 0
    id_S = np.zeros(source.sequences, np.int64)
    id_S[filled] = ids.at(start_S[filled])
    other = int((id_S != id_S[first_S]).sum())
    if not other:
        return source
    return source.noting(
        f"{other:,} of {source.sequences:,} sequences have the same tokens as one with another id "
        f"({ids.name}), and may lie in another split; let the split follow from the tokens with "
        f"--key {'group' if source.column('group') else 'sequence'}=none"
    )
