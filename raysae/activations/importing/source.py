"""The form that every format is opened as: activations in mapped memory, and columns of whole numbers.

Shapes: S sequences, T tokens of each (1 when the file has no sequences), N rows (all tokens of all
sequences), D d_in.
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
MASKS = ("mask", "padding")
COLUMN_ROLES = tuple(role for role in ROLES if role not in ("activation", *MASKS))


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
    """The sequences in order ``[S, T, D]``: one tensor, or several of the same dtype, T and D. Rows one
    by one ``[N, 1, D]`` where ``starts`` gives the sequences."""
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
    starts: NDArray[np.int64] | None = None
    """The first row of each sequence and the number of rows ``[S + 1]``, where sequences have unequal
    lengths."""
    copies: int = 1
    """How often the same sequences follow one another: at several layers or positions."""
    kept_N: NDArray[np.bool_] | None = None
    """Whether each row is a token, not padding; None when all are."""
    items: int = 0
    """How many items of a list, or files of a folder, it was joined from; 0 when it was not."""
    said: tuple[str, ...] = ()
    """How the file was read where that is not plain from its shape, in words."""
    notes: tuple[str, ...] = ()
    """What the user should know of it."""

    def __post_init__(self) -> None:
        if not self.rows or not self.d_in:
            raise UserError(
                f"{self.path}: it has no rows (shape {list(self.shape)}); expected activations "
                "[rows, d_in] or [sequences, tokens, d_in]"
            )

    @property
    def shape(self) -> tuple[int, ...]:
        """The file's shape: ``(S, T, D)``, or ``(N, D)`` when sequences are not of one length."""
        _, *rest = self.blocks_STD[0].shape
        sizes = (sum(len(block) for block in self.blocks_STD), *rest)
        return sizes if self.tokenwise and self.starts is None else (sizes[0], sizes[2])

    @cached_property
    def sequences(self) -> int:
        """S."""
        if self.starts is not None:
            return len(self.starts) - 1
        return sum(len(block) for block in self.blocks_STD)

    @property
    def tokens(self) -> int:
        """T; 1 where ``starts`` gives the sequences."""
        return self.blocks_STD[0].shape[1]

    @cached_property
    def rows(self) -> int:
        """N."""
        return sum(len(block) for block in self.blocks_STD) * self.tokens

    @property
    def d_in(self) -> int:
        """D."""
        return self.blocks_STD[0].shape[2]

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the values in the file."""
        return self.blocks_STD[0].dtype

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        """The number of rows of each sequence ``[S]``, padding included."""
        if self.starts is not None:
            return np.diff(self.starts)
        return np.full(self.sequences, self.tokens, np.int64)

    @property
    def ids(self) -> Column | None:
        """The column that becomes the rows' sequence id, which decides their split; None for none."""
        return self.column("group") or self.column("sequence")

    def column(self, role: str) -> Column | None:
        """The column of a role; None when the file has none."""
        return (self.columns or {}).get(role)

    def with_column(self, role: str, column: Column) -> "Source":
        """A copy of this source with ``column`` as the role's column."""
        return replace(self, columns={**(self.columns or {}), role: column})

    def saying(self, *words: str) -> "Source":
        """A copy that also says ``words`` of how the file was read."""
        return replace(self, said=(*self.said, *words))

    def noting(self, *notes: str) -> "Source":
        """A copy with more notes."""
        return replace(self, notes=(*self.notes, *notes))

    def sequence_of(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """The number of each row's sequence in the file, ``[rows]``."""
        if self.starts is None:
            return rows // self.tokens
        return np.searchsorted(self.starts, rows, side="right") - 1

    def place_of(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """The place of each row among the tokens of its sequence: from 0, padding before it not
        counted."""
        first = rows % self.tokens
        if self.starts is not None:
            first = rows - self.starts[self.sequence_of(rows)]
        if self.kept_N is None:
            return first
        return first - self._padding_before[self.sequence_of(rows)]

    def kept_rows(self) -> NDArray[np.int64]:
        """The numbers of the rows that are no padding."""
        if self.kept_N is None:
            return np.arange(self.rows, dtype=np.int64)
        return np.flatnonzero(self.kept_N)

    def take(self, rows: NDArray[np.int64]) -> Tensor:
        """Read the activations of ``rows`` from the file: ``[rows, D]``, in the file's dtype."""
        sequence, token = np.divmod(rows, self.tokens)
        if len(self.blocks_STD) == 1:
            return self.blocks_STD[0][torch.from_numpy(sequence), torch.from_numpy(token)]
        taken_ND = torch.empty(len(rows), self.d_in, dtype=self.dtype)
        number = np.searchsorted(self._block_starts, sequence, side="right") - 1
        for block in np.unique(number):
            here = number == block
            at = torch.from_numpy(sequence[here] - self._block_starts[block])
            taken_ND[torch.from_numpy(here)] = self.blocks_STD[block][
                at, torch.from_numpy(token[here])
            ]
        return taken_ND

    @cached_property
    def _block_starts(self) -> NDArray[np.int64]:
        return np.cumsum([0, *(len(block) for block in self.blocks_STD)])[:-1]

    @cached_property
    def _padding_before(self) -> NDArray[np.int64]:
        """Rows of each sequence before its first token ``[S]``."""
        kept = self.kept_rows()
        number = self.sequence_of(kept)
        first = np.flatnonzero(np.diff(number, prepend=-1))
        before = np.zeros(self.sequences, np.int64)
        starts = number[first] * self.tokens if self.starts is None else self.starts[number[first]]
        before[number[first]] = kept[first] - starts
        return before


def as_sequences(tensor: Tensor, where: str) -> Tensor:
    """View a tensor ``[rows, d_in]`` or ``[sequences, tokens, d_in]`` as ``[S, T, D]``, not copied.

    Raises UserError when it has another shape, or does not hold floating point numbers.
    """
    if tensor.dim() not in (2, 3):
        raise UserError(
            f"{where}: it has {tensor.dim()} dimensions (shape {list(tensor.shape)}); expected "
            f"activations [rows, d_in] or [sequences, tokens, d_in]{_dimensions(tensor)}"
        )
    refuse_dtype(tensor, where)
    return tensor if tensor.dim() == 3 else tensor.unsqueeze(1)


def refuse_dtype(tensor: Tensor, where: str) -> None:
    """Raise UserError unless the tensor holds floating point numbers of a dtype that can be stored."""
    if tensor.dtype not in STORED_AS or tensor.layout != torch.strided:
        raise UserError(
            f"{where}: it holds {dtype_name(tensor.dtype)} values ({tensor.layout}); expected dense "
            "float16, bfloat16, float32 or float64"
        )


def dtype_name(dtype: torch.dtype) -> str:
    """The dtype's name, such as ``"float32"``."""
    return str(dtype).removeprefix("torch.")


def _dimensions(tensor: Tensor) -> str:
    """What to do about a tensor of four or more dimensions."""
    if tensor.dim() < 4:
        return ""
    return (
        "; say what the dimensions are with --axes, such as --axes sequence,layer,token,d_in (1 for a "
        "dimension of size 1); of heads, save one (x[:, :, head]), or all joined to one d_in"
    )
