"""The columns beside the activations: ids (numbers or text), token ids, masks.

Shapes: S sequences, T tokens of each, N rows.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from raysae.activations.importing.names import other_way
from raysae.activations.importing.source import FOR_ALL, LIMITS, Column, Source
from raysae.errors import UserError

IDS = ("sequence", "group")
"""The roles whose values may be text; its hash is the id."""


def make_column(role: str, name: str, values: NDArray[np.int64], source: Source) -> Column:
    """Make a column of the source: a value per row, per sequence, or (layer and position) one for all.

    Raises UserError when the shape does not fit, or a value is out of range.
    """
    lengths = column_lengths(role, source)
    if values.size not in lengths or _turned(values, source):
        fitting = " or ".join(f"{length:,}" for length in sorted(lengths, reverse=True))
        shape = f", shape {list(values.shape)}" if values.ndim > 1 else ""
        raise UserError(
            f"{source.path}: {name} ({role}) has {values.size:,} values{shape}; expected {fitting}, as "
            f"the activations are {list(source.shape)}"
        )
    values = values.reshape(-1)
    low, high = LIMITS.get(role, (-(2**63), 2**63 - 1))
    outside = np.flatnonzero((values < low) | (values > high))
    if len(outside):
        raise UserError(
            f"{source.path}: {name} ({role}) is out of range: {values[outside[0]]} at row "
            f"{outside[0]}; expected {low} to {high}"
        )
    if role not in FOR_ALL and values.size * source.copies in (source.sequences, source.rows):
        values = np.tile(values, source.copies)
    if source.starts is not None and values.size == source.sequences != source.rows:
        values = np.repeat(values, source.lengths)
    return Column(name, values, source.rows // values.size)


def column_lengths(role: str, source: Source) -> set[int]:
    """The numbers of values that a role's column may have."""
    whole = {source.sequences, source.rows}
    once = {length // source.copies for length in whole} if role not in FOR_ALL else set()
    return whole | once | ({1} if role in FOR_ALL else set())


@dataclass(frozen=True)
class TextIds:
    """A column of texts of which only the hashes are kept."""

    values: NDArray[np.int64]


def ids_of(leaf: Any) -> NDArray[np.int64] | None:
    """The leaf as ids: whole numbers as they are, text hashed; None when it is neither."""
    numbers = None if isinstance(leaf, TextIds) else whole_numbers(leaf)
    return numbers if numbers is not None else text_ids(leaf)


def text_ids(leaf: Any) -> NDArray[np.int64] | None:
    """The hashes of the leaf's texts; None when it holds no texts."""
    if isinstance(leaf, TextIds):
        return leaf.values
    texts = texts_of(leaf)
    return None if texts is None else hashed(texts)


def holds_text(leaf: Any) -> bool:
    """Whether the leaf holds texts."""
    return isinstance(leaf, TextIds) or texts_of(leaf) is not None


def hashed(texts: Iterable[str]) -> NDArray[np.int64]:
    """An id for each text: the first 8 bytes of its UTF-8's SHA-256, as a little-endian int64."""
    known: dict[str, int] = {}
    ids = []
    for text in texts:
        if text not in known:
            digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
            known[text] = int.from_bytes(digest[:8], "little", signed=True)
        ids.append(known[text])
    return np.array(ids, np.int64)


def whole_numbers(values: Any) -> NDArray[np.int64] | None:
    """The values as an array of their shape; lists of unequal lengths, and lists of tensors, one after
    the other. None when they are not whole numbers."""
    array = as_array(values)
    return array.astype(np.int64) if array is not None and array.dtype.kind in "iu" else None


def texts_of(leaf: Any) -> list[str] | None:
    """The leaf as a list of texts; None when it holds others."""
    if isinstance(leaf, np.ndarray) and leaf.dtype.kind in "SU":
        leaf = leaf.reshape(-1).tolist()
    if not isinstance(leaf, list | tuple) or not leaf:
        return None
    texts = [one.decode("utf-8", "replace") if isinstance(one, bytes) else one for one in leaf]
    return texts if all(isinstance(one, str) for one in texts) else None


def as_array(values: Any) -> NDArray[Any] | None:
    """Numbers as an array: of a tensor, an array, a number or nested lists; parts of unequal lengths
    one after the other. None when it holds anything else."""
    if isinstance(values, TextIds):
        return None
    if isinstance(values, Tensor):
        odd = values.is_complex() or (values.dtype.itemsize < 2 and values.is_floating_point())
        values = values.detach()
        return (
            None if odd else (values.float() if "bfloat16" in str(values.dtype) else values).numpy()
        )
    if isinstance(values, list | tuple) and values and _nested(values):
        parts = [as_array(part) for part in values]
        if any(part is None for part in parts):
            return None
        known = [part for part in parts if part is not None]
        same = len({part.shape for part in known}) == 1
        return np.stack(known) if same else np.concatenate([part.reshape(-1) for part in known])
    try:
        array = np.asarray(values)
    except ValueError:
        return None
    return array if array.dtype.kind in "iufb" else None


def size_of(leaf: Any) -> int:
    """The number of values in a leaf; 1 for anything without a length."""
    if isinstance(leaf, Tensor):
        return leaf.numel()
    if isinstance(leaf, TextIds):
        return leaf.values.size
    if isinstance(leaf, list | tuple) and leaf and _nested(leaf):
        return sum(size_of(part) for part in leaf)
    return int(np.size(leaf)) if isinstance(leaf, list | tuple | np.ndarray) else 1


def refuse_group_within(source: Source) -> None:
    """Raise UserError when a sequence has rows of several groups, so that it is not clear which of the
    two the split should follow."""
    group, sequence = source.column("group"), source.column("sequence")
    if group is None or (sequence is None and not source.tokenwise):
        return
    rows = np.arange(source.rows, dtype=np.int64)
    ids = source.sequence_of(rows) if sequence is None else sequence.at(rows)
    order = np.argsort(ids, kind="stable")
    starts = np.flatnonzero(np.diff(ids[order], prepend=~ids[order[0]]))
    groups = group.at(order)
    cut = np.minimum.reduceat(groups, starts) != np.maximum.reduceat(groups, starts)
    if cut.any():
        raise UserError(
            f"{source.path}: {group.name} could be the group, which keeps a document or chat in one "
            f"split, but sequence {ids[order[starts[cut][0]]]} has rows of several ({int(cut.sum()):,} "
            f"sequences have); say --key group={group.name} to split by it all the same, or --key "
            "group=none"
        )


def numbers_or_refuse(role: str, name: str, leaf: Any, source: Source) -> NDArray[np.int64]:
    """The values of the role's leaf. Raises UserError when they are not whole numbers (or text, as
    ids)."""
    values = ids_of(leaf) if role in IDS else whole_numbers(leaf)
    if values is None:
        raise UserError(
            f"{source.path}: {name} ({role}) does not hold whole numbers{_or_text(role)}; "
            f"{other_way(role)}"
        )
    return values


def _or_text(role: str) -> str:
    return " or text" if role in IDS else ""


def _nested(values: Sequence[Any]) -> bool:
    return all(isinstance(part, Tensor | list | tuple | np.ndarray) for part in values)


def _turned(values: NDArray[np.int64], source: Source) -> bool:
    """Whether a table of values is ``[T, S]`` or so, while the activations are ``[S, T, D]``."""
    sizes = [size for size in values.shape if size != 1]
    if len(sizes) < 2 or source.starts is not None or not source.tokenwise:
        return False
    return sizes != [
        size for size in (source.sequences // source.copies, source.tokens) if size != 1
    ]
