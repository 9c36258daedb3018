"""Checking the values of an import before anything is written.

Shapes: N rows, D d_in.
"""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raysae.activations.casting import lossy_rows, refuse_lossy
from raysae.activations.importing.options import ImportOptions
from raysae.activations.importing.repeats import LOOKED, Look, row_hashes
from raysae.activations.importing.request import Progress
from raysae.activations.importing.selection import Selection, as_array, pieces
from raysae.activations.importing.source import Source
from raysae.activations.schema import Dtype, torch_dtype
from raysae.errors import UserError


def check_values(
    source: Source,
    selections: list[Selection],
    dtype: Dtype,
    options: ImportOptions,
    progress: Progress,
) -> Look:
    """Read every row once, in the file's order. Returns what repeats among the rows.

    Raises UserError when a value is too large for ``dtype``, when rows in bulk are too small for it, when
    rows hold NaN or infinite values and ``non_finite`` is ``"refuse"``, or when dropping such rows would
    leave a site empty. With ``max_norm_ratio`` a value may be too large here: its row may be left out.
    """
    rows = selections[0].rows
    if len(selections) > 1:
        rows = np.sort(np.concatenate([as_array(selection.rows) for selection in selections]))
    largest = math.inf
    if options.max_norm_ratio is None:
        largest = torch.finfo(torch_dtype(dtype)).max
    unfit: list[NDArray[np.int64]] = []
    lossy: list[NDArray[np.int64]] = []
    look = Look(as_array(rows[:LOOKED]))
    for piece in pieces(len(rows), source.d_in):
        row_N = as_array(rows[piece])
        values_ND = source.take(row_N)
        unfit.append(_unfit(source, row_N, values_ND, dtype, largest))
        lossy.append(row_N[lossy_rows(values_ND, dtype)])
        if piece.stop <= LOOKED:
            look.hashes[piece], look.zero[piece] = row_hashes(values_ND)
        progress("checking", piece.stop, len(rows))
    small = np.concatenate(lossy)
    refuse_lossy(str(source.path), small, len(rows), dtype, source.take)
    dropped = np.concatenate(unfit)
    if len(dropped) and options.non_finite == "refuse":
        raise UserError(
            f"{source.path}: {len(dropped):,} of {len(rows):,} rows hold NaN or infinite values "
            f"(first: {_place(source, dropped[0])}); find out why, or leave such rows out with "
            "--non-finite drop"
        )
    _refuse_emptied(source, selections, dropped)
    return look


def _unfit(
    source: Source, row_N: NDArray[np.int64], values_ND: Tensor, dtype: Dtype, limit: float
) -> NDArray[np.int64]:
    """The rows of ``row_N`` with NaN or infinite values. Raises UserError when a finite value is over
    ``limit``, the largest of ``dtype``."""
    low, high = values_ND.aminmax()
    largest = max(-float(low), float(high))
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
        at = np.array([row])
        return f"sequence {source.sequence_of(at)[0]}, token {source.place_of(at)[0]} of the file"
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
