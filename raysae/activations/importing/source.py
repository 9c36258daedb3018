"""The form that every format is opened as: activations in mapped memory, and columns of whole numbers.

Shapes: S sequences, T tokens of each (1 when the file has no sequences), N rows (S times T), D d_in.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raysae.activations.importing.names import ROLES
from raysae.activations.schema import Dtype
from raysae.errors import UserError
from raysae.sites import Position

STORED_AS: dict[torch.dtype, Dtype] = {
    torch.float16: "float16",
    torch.bfloat16: "bfloat16",
    torch.float32: "float32",
    torch.float64: "float32",
}
"""The dtypes that can be imported, and the dtype that a store has by default."""
LIMITS = {
    "layer": (0, 9_999),
    "position": (-(2**20), 2**20),
    "token_index": (0, 2**31 - 1),
    "token_id": (-(2**31), 2**31 - 1),
}
"""Smallest and largest value of each column; a sequence's id is any 64-bit number."""
FOR_ALL = ("layer", "position")
"""The columns that may have a single value for all rows."""
COLUMN_ROLES = tuple(role for role in ROLES if role != "activation")


@dataclass(frozen=True)
class Column:
    """Whole numbers: one for each row, or one for every ``repeat`` consecutive rows."""

    name: str
    values: NDArray[np.int64]
    repeat: int = 1

    def at(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """The values of the rows with these numbers, ``[rows]``."""
        return self.values[rows // self.repeat]


@dataclass(frozen=True)
class Source:
    """The activations of a file. Rows are numbered from 0, sequence by sequence.

    Raises UserError when it has no rows.
    """

    path: Path
    format: str
    files: tuple[Path, ...]
    blocks_STD: tuple[Tensor, ...]
    """The sequences in order ``[S, T, D]``: one tensor, or several of the same dtype, T and D."""
    tokenwise: bool
    """Whether the file has a dimension of tokens."""
    activation: str = ""
    """The name of the activations in the file; empty when the file has no names."""
    columns: Mapping[str, Column] | None = None
    """By role."""
    layer: int | None = None
    """The layer in the activations' name; an option overrides it."""
    position: Position | None = None
    """The position when no option gives one."""
    hookpoint: str | None = None

    def __post_init__(self) -> None:
        if not self.rows or not self.d_in:
            raise UserError(
                f"{self.path}: it has no rows (shape {list(self.shape)}); expected activations "
                "[rows, d_in] or [sequences, tokens, d_in]"
            )

    @property
    def shape(self) -> tuple[int, ...]:
        """The file's shape: ``(S, T, D)``, or ``(N, D)`` when it has no dimension of tokens."""
        _, *rest = self.blocks_STD[0].shape
        sizes = (sum(len(block) for block in self.blocks_STD), *rest)
        return sizes if self.tokenwise else (sizes[0], sizes[2])

    @cached_property
    def sequences(self) -> int:
        """S."""
        return sum(len(block) for block in self.blocks_STD)

    @property
    def tokens(self) -> int:
        """T."""
        return self.blocks_STD[0].shape[1]

    @property
    def rows(self) -> int:
        """N."""
        return self.sequences * self.tokens

    @property
    def d_in(self) -> int:
        """D."""
        return self.blocks_STD[0].shape[2]

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the values in the file."""
        return self.blocks_STD[0].dtype

    def column(self, role: str) -> Column | None:
        """The column of a role; None when the file has none."""
        return (self.columns or {}).get(role)

    def with_column(self, role: str, column: Column) -> "Source":
        """A copy of this source with ``column`` as the role's column."""
        return replace(self, columns={**(self.columns or {}), role: column})

    def take(self, rows: NDArray[np.int64]) -> Tensor:
        """Read the activations of ``rows`` from the file: ``[rows, D]``, in the file's dtype."""
        sequence, token = np.divmod(rows, self.tokens)
        if len(self.blocks_STD) == 1:
            return self.blocks_STD[0][torch.from_numpy(sequence), torch.from_numpy(token)]
        taken_ND = torch.empty(len(rows), self.d_in, dtype=self.dtype)
        number = np.searchsorted(self._starts, sequence, side="right") - 1
        for block in np.unique(number):
            here = number == block
            at = torch.from_numpy(sequence[here] - self._starts[block])
            taken_ND[torch.from_numpy(here)] = self.blocks_STD[block][
                at, torch.from_numpy(token[here])
            ]
        return taken_ND

    @cached_property
    def _starts(self) -> NDArray[np.int64]:
        return np.cumsum([0, *(len(block) for block in self.blocks_STD)])[:-1]


def as_sequences(tensor: Tensor, where: str) -> Tensor:
    """View a tensor ``[rows, d_in]`` or ``[sequences, tokens, d_in]`` as ``[S, T, D]``, not copied.

    Raises UserError when it has another shape, or does not hold floating point numbers.
    """
    if tensor.dim() not in (2, 3):
        raise UserError(
            f"{where}: it has {tensor.dim()} dimensions (shape {list(tensor.shape)}); expected "
            "activations [rows, d_in] or [sequences, tokens, d_in]"
        )
    if tensor.dtype not in STORED_AS or tensor.layout != torch.strided:
        raise UserError(
            f"{where}: it holds {dtype_name(tensor.dtype)} values ({tensor.layout}); expected dense "
            "float16, bfloat16, float32 or float64"
        )
    return tensor if tensor.dim() == 3 else tensor.unsqueeze(1)


def dtype_name(dtype: torch.dtype) -> str:
    """The dtype's name, such as ``"float32"``."""
    return str(dtype).removeprefix("torch.")


def make_column(role: str, name: str, values: NDArray[np.int64], source: Source) -> Column:
    """Make a column of the source: a value per row, per sequence, or (layer and position) one for all.

    Raises UserError when the number of values does not fit, or a value is out of range.
    """
    lengths = column_lengths(role, source.sequences, source.tokens)
    if values.size not in lengths:
        fitting = " or ".join(f"{length:,}" for length in sorted(lengths, reverse=True))
        raise UserError(
            f"{source.path}: {name} ({role}) has {values.size:,} values; expected {fitting}, as the "
            f"activations are {list(source.shape)}"
        )
    low, high = LIMITS.get(role, (-(2**63), 2**63 - 1))
    outside = np.flatnonzero((values < low) | (values > high))
    if len(outside):
        raise UserError(
            f"{source.path}: {name} ({role}) is out of range: {values[outside[0]]} at row "
            f"{outside[0]}; expected {low} to {high}"
        )
    return Column(name, values, source.rows // values.size)


def column_lengths(role: str, sequences: int, tokens: int) -> set[int]:
    """The numbers of values that a role's column may have."""
    return {sequences, sequences * tokens} | ({1} if role in FOR_ALL else set())


def whole_numbers(values: object) -> NDArray[np.int64] | None:
    """The values as an array of one dimension; None when they are not whole numbers."""
    if isinstance(values, Tensor):
        whole = not values.is_floating_point() and not values.is_complex()
        if not whole or values.dtype == torch.bool:
            return None
        return values.numpy().reshape(-1).astype(np.int64)
    try:
        array = np.asarray(values)
    except ValueError:  # lists of unequal length
        return None
    return array.reshape(-1).astype(np.int64) if array.dtype.kind in "iu" else None
