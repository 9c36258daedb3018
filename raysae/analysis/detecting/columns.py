"""Which columns probes see: chosen on the training part of every fold, and the only ones that are kept.

Shapes: N sequences, M columns, U columns that any fold of any labelling chose.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raysae.analysis.detecting.probes import OUTER, SPARSE, Columns, Labelling, Moments, largest

KEPT = 2**26
"""Values of all columns that are kept from one pass to the next; of more, they are made again."""
AT_ONCE = 2**22
Blocks = Callable[[], Iterator[tuple[NDArray[np.int64], NDArray[Any]]]]
"""Some sequences at a time: their numbers, and all their columns ``[S, M]``."""


@dataclass(frozen=True)
class Chosen:
    """The columns that were chosen, of all sequences."""

    x_NU: NDArray[np.float32]
    number_U: NDArray[np.int64]
    """Which of the ``M`` columns each is."""
    wide: list[list[NDArray[np.int64]]]
    """By labelling and fold the places in ``x_NU`` of the columns with the most variance."""
    narrow: list[list[NDArray[np.int64]]]
    """By labelling and fold those with the largest difference of class means, the largest first."""

    def many(self, labelling: int, rows: NDArray[np.int64]) -> Columns:
        """The columns with the most variance, of the sequences ``rows``."""
        return lambda fold: self.x_NU[np.ix_(rows, self.wide[labelling][fold])]

    def few(self, labelling: int, count: int, rows: NDArray[np.int64]) -> Columns:
        """The ``count`` columns with the largest difference of class means."""
        return lambda fold: self.x_NU[np.ix_(rows, self.narrow[labelling][fold][:count])]


def chosen(
    blocks: Blocks, shape: tuple[int, int], labellings: Sequence[Labelling], most: int,
    comparable: int | None = None,
) -> Chosen:  # fmt: skip
    """Choose, on the training part of every fold of every labelling, the ``most`` columns with the
    largest variance, and for sparse probes those among the first ``comparable`` with the largest
    difference of class means.

    ``shape`` is ``[N, M]``; the blocks are made twice where it is large. Sequences in no block are zero.
    """
    blocks = _once(blocks) if shape[0] * shape[1] <= KEPT else blocks
    moments = Moments.none(labellings, shape[1])
    for rows, x_SM in blocks():
        moments.add(rows, x_SM)
    compared = shape[1] if comparable is None else comparable
    wide, narrow = [], []
    for number in range(len(labellings)):
        wide.append([largest(moments.variance(number, fold), most) for fold in range(OUTER)])
        narrow.append(
            [
                np.argsort(-moments.difference(number, fold)[:compared], kind="stable")[
                    : SPARSE[-1]
                ]
                for fold in range(OUTER)
            ]
        )
    number_U = np.unique(np.concatenate([fold for lists in (*wide, *narrow) for fold in lists]))
    x_NU = np.zeros((shape[0], len(number_U)), np.float32)
    for rows, x_SM in blocks():
        x_NU[rows] = x_SM[:, number_U]
    return Chosen(x_NU, number_U, _places(wide, number_U), _places(narrow, number_U))


def _places(
    columns: list[list[NDArray[np.int64]]], number_U: NDArray[np.int64]
) -> list[list[NDArray[np.int64]]]:
    return [[np.searchsorted(number_U, one) for one in folds] for folds in columns]


def _once(blocks: Blocks) -> Blocks:
    kept: list[tuple[NDArray[np.int64], NDArray[Any]]] = []

    def again() -> Iterator[tuple[NDArray[np.int64], NDArray[Any]]]:
        if not kept:
            kept.extend(blocks())
        yield from kept

    return again


def sparse_blocks(x_NM: Any, rows: NDArray[np.int64]) -> Blocks:
    """The blocks of the ``rows`` of a sparse matrix ``[N, M]`` (scipy's CSR)."""
    together = max(AT_ONCE // max(x_NM.shape[1], 1), 1)

    def blocks() -> Iterator[tuple[NDArray[np.int64], NDArray[Any]]]:
        for start in range(0, len(rows), together):
            part = rows[start : start + together]
            yield part, x_NM[part].toarray()

    return blocks


def dense_blocks(x_NM: NDArray[Any], rows: NDArray[np.int64]) -> Blocks:
    """The ``rows`` of a matrix ``[N, M]`` as one block."""
    return lambda: iter([(rows, x_NM[rows])])
