"""What repeats among the rows of an import: zeros, equal rows, and runs of them at the ends of sequences.

Shapes: S sequences, T tokens of each, N rows, D d_in.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raysae.activations.importing.masks import BULK, runs_at_ends, same_token_runs
from raysae.activations.importing.same_texts import mix
from raysae.activations.importing.selection import Selection, as_array, pieces
from raysae.activations.importing.source import Source

LOOKED = 2**24
"""Only so many rows are looked at, so that the memory held does not follow the file."""
COMMON = 0.1
"""From this fraction of the rows on, one row that occurs again and again is told of."""
PROBES = 16
"""Values of a row that its hash depends on."""
MASK_WAY = (
    "leave padding out with a mask [sequences, tokens] in the same file, such as a .npz (1 is a token; "
    "--key mask=NAME)"
)


@dataclass(frozen=True)
class Look:
    """What was seen of the first ``LOOKED`` selected rows, in the file's order."""

    rows: NDArray[np.int64]
    """Their numbers ``[N]``."""
    hashes: NDArray[np.uint64] = field(init=False)
    """Equal rows have equal ones, and unequal rows nearly always others."""
    zero: NDArray[np.bool_] = field(init=False)
    """Whether all values are 0."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "hashes", np.zeros(len(self.rows), np.uint64))
        object.__setattr__(self, "zero", np.zeros(len(self.rows), bool))


def row_hashes(values_ND: Tensor) -> tuple[NDArray[np.uint64], NDArray[np.bool_]]:
    """A hash of each row from a few of its values ``[N]``, and whether the row is all 0 ``[N]``."""
    step = max(values_ND.shape[1] // PROBES, 1)
    data = values_ND[:, ::step].contiguous().view(torch.uint8).numpy()
    words = np.zeros((len(data), -(-data.shape[1] // 8)), np.uint64)
    words.view(np.uint8).reshape(len(data), -1)[:, : data.shape[1]] = data
    odd = mix(np.arange(words.shape[1], dtype=np.uint64)) | np.uint64(1)
    with np.errstate(over="ignore"):
        sums = (words * odd).sum(axis=1, dtype=np.uint64)
    zero_N = sums == 0
    at = np.flatnonzero(zero_N)
    if len(at):
        zero_N[at] = ~(values_ND[torch.from_numpy(at)] != 0).any(dim=1).numpy()
    return mix(sums), zero_N


def notes_on_repeats(source: Source, selection: Selection, look: Look) -> Iterator[str]:
    """Notes on rows of the first site that may be padding, and on texts that may lie in two splits.

    Each is told from 1 row (or sequence) in 100 on; one row that occurs again and again, from 1 in
    10 on. Rows that repeat are counted only where the split does not follow from ids or token ids.
    """
    rows = as_array(selection.rows[:LOOKED])
    hashes, zero_N = look.hashes, look.zero
    if len(rows) != len(look.rows):  # of several sites, the first
        at = np.searchsorted(look.rows, rows)
        rows, at = rows[at < len(look.rows)], at[at < len(look.rows)]
        hashes, zero_N = hashes[at], zero_N[at]
    zero = int(zero_N.sum())
    padding = list(_padding(source, rows, hashes))
    yield from padding
    if zero >= max(BULK * len(rows), 2) and not padding:
        yield f"{zero:,} of {len(rows):,} rows are all 0; if they are padding, {MASK_WAY}"
    elif not padding:
        yield from _one_row(source, rows, hashes)
    if source.ids is None:
        yield from _repeated(source, rows, hashes)


def _padding(source: Source, rows: NDArray[np.int64], hashes: NDArray[np.uint64]) -> Iterator[str]:
    """A note on runs of one token, or of equal rows, at the ends of sequences."""
    if source.kept_N is not None or not source.tokenwise:
        return
    run = same_token_runs(source)
    if run is not None and run[1] >= BULK * source.rows:
        yield (
            f"{run[1]:,} of {source.rows:,} rows are runs of token {run[0]} at the ends of sequences, "
            f"most likely padding; leave it out with --pad-token {run[0]}, or with a mask"
        )
        return
    if len(rows) != source.rows:
        return
    long = source.lengths > 1
    last_S = np.cumsum(source.lengths)[long] - 1
    first_S = last_S + 1 - source.lengths[long]
    ends = (hashes[last_S] == hashes[last_S - 1]) | (hashes[first_S] == hashes[first_S + 1])
    if not ends.any():
        return
    last_S = np.cumsum(source.lengths)[source.lengths > 0] - 1
    first_S = last_S + 1 - source.lengths[source.lengths > 0]
    like = np.zeros(source.rows, bool)
    for end in (first_S, last_S):
        same = hashes == np.repeat(hashes[end], source.lengths[source.lengths > 0])
        like |= runs_at_ends(same, source, least=2)
    if int(like.sum()) >= BULK * source.rows:
        yield (
            f"{int(like.sum()):,} of {source.rows:,} rows are runs of equal rows at the ends of "
            f"sequences, most likely padding; {MASK_WAY}, or with --pad-token where there are token ids"
        )


def _one_row(source: Source, rows: NDArray[np.int64], hashes: NDArray[np.uint64]) -> Iterator[str]:
    """A note on one row that is a large part of all; not on a first token, once in each sequence."""
    found, counts = np.unique(hashes, return_counts=True)
    most = int(counts.max())
    sequence = source.column("sequence")
    once = 0
    if source.tokenwise:
        once = source.sequences
    elif sequence is not None:
        once = len(np.unique(sequence.at(rows)))
    if most < max(COMMON * len(rows), once + 1, 2):
        return
    exact = _exact_hashes(source, rows[hashes == found[counts.argmax()]])
    most = int(np.unique(exact, return_counts=True)[1].max())
    if most >= max(COMMON * len(rows), once + 1, 2):
        yield f"one row occurs {most:,} times in {len(rows):,}; if it is padding, {MASK_WAY}"


def _repeated(source: Source, rows: NDArray[np.int64], hashes: NDArray[np.uint64]) -> Iterator[str]:
    number = source.sequence_of(rows)
    starts = np.flatnonzero(np.diff(number, prepend=-1))
    likely_keys = _joined(hashes, source.place_of(rows), starts)
    if len(starts) - len(np.unique(likely_keys)) < max(BULK * len(starts), 1):
        return
    likely = _twice(likely_keys)
    counts = np.diff([*starts, len(rows)])
    chosen = rows[np.repeat(likely, counts)]
    exact = _exact_hashes(source, chosen)
    number = source.sequence_of(chosen)
    starts_of = np.flatnonzero(np.diff(number, prepend=-1))
    keys = _joined(exact, source.place_of(chosen), starts_of)
    repeated = len(keys) - len(np.unique(keys))
    if repeated < max(BULK * len(starts), 1):
        return
    what = "sequences" if source.tokenwise else "rows"
    yield (
        f"{repeated:,} of {len(starts):,} {what} are equal to an earlier one, and the file has no ids: a "
        "text that occurs twice may lie in two splits; give ids (--key sequence=NAME or group=NAME, "
        "--sequences FILE.npy) or token ids [sequences, tokens]"
    )


def _joined(
    hashes: NDArray[np.uint64], place: NDArray[np.int64], starts: NDArray[np.int64]
) -> NDArray[np.uint64]:
    """A hash of each sequence from those of its rows."""
    with np.errstate(over="ignore"):
        return np.add.reduceat(mix(hashes + mix(place.astype(np.uint64))), starts)


def _twice(keys: NDArray[np.uint64]) -> NDArray[np.bool_]:
    _, which, counts = np.unique(keys, return_inverse=True, return_counts=True)
    return counts[which] > 1


def _exact_hashes(source: Source, rows: NDArray[np.int64]) -> NDArray[np.uint64]:
    """A hash of all bytes of each row."""
    hashes: list[int] = []
    for piece in pieces(len(rows), source.d_in):
        data: Any = source.take(rows[piece]).contiguous().view(torch.uint8).numpy()
        hashes += [
            int.from_bytes(hashlib.blake2b(row.tobytes(), digest_size=8).digest(), "little")
            for row in data
        ]
    return np.array(hashes, np.uint64)
