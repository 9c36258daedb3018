"""Checking the values of an import before anything is written.

Shapes: N rows, D d_in.
"""

import math

import numpy as np
import torch
from numpy.typing import NDArray

from raysae.activations.importing.request import Progress
from raysae.activations.importing.selection import Selection, as_array, pieces
from raysae.activations.importing.source import Source
from raysae.activations.schema import Dtype, torch_dtype
from raysae.activations.writer import NonFinite
from raysae.errors import UserError


def check_values(
    source: Source,
    selections: list[Selection],
    dtype: Dtype,
    non_finite: NonFinite,
    progress: Progress,
) -> int:
    """Read every row once, in the file's order. Returns the number of rows that will be dropped.

    Raises UserError when a value is too large for ``dtype``, when rows hold NaN or infinite values and
    ``non_finite`` is ``"refuse"``, or when dropping such rows would leave a site empty.
    """
    rows = selections[0].rows
    if len(selections) > 1:
        rows = np.sort(np.concatenate([as_array(selection.rows) for selection in selections]))
    unfit: list[NDArray[np.int64]] = []
    for piece in pieces(len(rows), source.d_in):
        row_N = as_array(rows[piece])
        unfit.append(_unfit(source, row_N, dtype))
        progress("checking", piece.stop, len(rows))
    dropped = np.concatenate(unfit)
    if len(dropped) and non_finite == "refuse":
        raise UserError(
            f"{source.path}: {len(dropped):,} of {len(rows):,} rows hold NaN or infinite values "
            f"(first: {_place(source, dropped[0])}); find out why, or leave such rows out with "
            "--non-finite drop"
        )
    _refuse_emptied(source, selections, dropped)
    return len(dropped)


def _unfit(source: Source, row_N: NDArray[np.int64], dtype: Dtype) -> NDArray[np.int64]:
    """The rows of ``row_N`` with NaN or infinite values. Raises UserError when a finite value is too
    large for ``dtype``."""
    values_ND = source.take(row_N)
    low, high = values_ND.aminmax()
    largest = max(-float(low), float(high))
    limit = torch.finfo(torch_dtype(dtype)).max
    if math.isfinite(largest) and largest <= limit:
        return row_N[:0]
    finite_N = values_ND.isfinite().all(dim=1)
    too_large_N = finite_N & (values_ND.double().abs() > limit).any(dim=1)
    if too_large_N.any():
        first = int(too_large_N.nonzero()[0])
        reached = float(values_ND[first].abs().max())
        raise UserError(
            f"{source.path}: an activation reaches {reached:.4g} ({_place(source, row_N[first])}), "
            f"above {dtype}'s largest value {limit:.4g}; import with --dtype bfloat16 or --dtype "
            "float32"
        )
    return row_N[~finite_N.numpy()]


def _place(source: Source, row: int) -> str:
    if source.tokenwise:
        return f"sequence {row // source.tokens}, token {row % source.tokens} of the file"
    return f"row {row} of the file"


def _refuse_emptied(
    source: Source, selections: list[Selection], dropped: NDArray[np.int64]
) -> None:
    for selection in selections if len(dropped) else []:
        if np.isin(as_array(selection.rows), dropped).all():
            raise UserError(
                f"{source.path}: {selection.site}: all {len(selection):,} rows hold NaN or infinite "
                "values; nothing would be left"
            )
