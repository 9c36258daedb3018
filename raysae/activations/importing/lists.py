"""Several tensors that are one set of activations: a list in a file, a folder of files, named prompts.

Shapes: S sequences, T tokens of each, N rows, D d_in.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raysae.activations.importing.columns import hashed, make_column
from raysae.activations.importing.names import ITEM, NONE
from raysae.activations.importing.source import Source, refuse_dtype
from raysae.errors import UserError

_QUESTIONS = {
    1: "each could be a row, or a layer; say --key sequence=item when each is a row",
    2: "each could be a sequence, a batch of rows, or a layer; say --key sequence=item when each is a "
    "sequence, --key sequence=none when each of their rows is a sequence of its own",
    3: "each could hold sequences of its own, or be a layer; say --key sequence=item when each holds "
    "sequences",
}
_STACK = (
    "of layers, save the stack and say --axes layer,sequence,token,d_in (or layer,sequence,d_in)"
)
LONG_NAME = 60
"""A longer name is a text."""
MANY = 128
"""More vectors than any transformer has layers."""
_OTHER_PARTS = re.compile(
    r"layer|block|hook|resid|mlp|attn|embed|head|logit|weight|bias|w_|train|valid|val$|test|dev$",
    re.I,
)
"""Names of tensors that are not the sequences of one data set."""


@dataclass(frozen=True)
class Items:
    """Tensors in order, with a word for one of them (``item``, ``file``) and their names."""

    tensors: Sequence[Tensor]
    word: str
    names: Sequence[str]

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """The shape of each."""
        return [tuple(tensor.shape) for tensor in self.tensors]


def of_items(
    path: Path,
    form: str,
    files: tuple[Path, ...],
    items: Items,
    activation: str,
    keys: Mapping[str, str],
    has_ids: bool = False,
) -> Source:
    """The source of several tensors of the same d_in and dtype, not copied where they need not be.

    Vectors ``[D]`` are rows; ``[T, D]`` of unequal lengths are sequences, and of ``[S, T, D]`` each
    holds sequences. Raises UserError when they do not fit together, or it is not clear which of these
    they are: then ``--key sequence=item`` or ``none`` says it (or the file's ids do: ``has_ids``).
    """
    where = f"{path}: {activation}" if activation else str(path)
    _refuse_mixture(where, items)
    mode = ITEM if has_ids else keys.get("sequence")
    dims, count = items.tensors[0].dim(), f"{len(items.tensors):,} {items.word}s"
    if mode not in (ITEM, NONE) and _unclear(items.shapes):
        shape = list(items.shapes[0])
        raise UserError(f"{where}: {count} of shape {shape}: {_QUESTIONS[dims]}; {_STACK}")
    blocks, starts, what = _blocks(items, dims == 2 and mode == NONE)
    if not blocks:
        raise UserError(f"{where}: its {count} have no rows")
    tokenwise = not what.startswith("row")
    source = Source(path, form, files, blocks, tokenwise, activation, starts=starts)
    return replace(source, items=len(items.tensors)).saying(f"{count}: {what}")


def _blocks(items: Items, rows: bool) -> tuple[tuple[Tensor, ...], NDArray[np.int64] | None, str]:
    """The blocks of a source, the starts of its sequences, and what the items are in words; ``rows``
    makes each row of ``[T, D]`` a sequence of its own."""
    if items.tensors[0].dim() == 1:
        return (torch.stack(list(items.tensors)).unsqueeze(1),), None, "rows, one each"
    if rows:
        return tuple(t.unsqueeze(1) for t in items.tensors if len(t)), None, "rows, each a sequence"
    words = "sequences, one each" if items.tensors[0].dim() == 2 else "sequences, several each"
    return (*_sequences(items), words)


def as_items(leaf: Any) -> Items | None:
    """A list of floating point tensors as items; None for anything else."""
    fitting = isinstance(leaf, list | tuple) and leaf and all(isinstance(t, Tensor) for t in leaf)
    if not fitting or not all(t.is_floating_point() and t.dim() in (1, 2, 3) for t in leaf):
        return None
    return Items([tensor.detach() for tensor in leaf], "item", [str(i) for i in range(len(leaf))])


def are_prompts(kinds: Mapping[str, tuple[tuple[int, ...], torch.dtype]], others: int) -> bool:
    """Whether tensors of these shapes and dtypes can only be the sequences of one data set: several
    ``[T, D]`` of one d_in and dtype but unequal lengths, no ``others`` beside them, and no names of
    something else."""
    shapes = [shape for shape, _ in kinds.values()]
    if others or len(shapes) < 2 or any(len(shape) != 2 for shape in shapes):
        return False
    if len({(shape[1], dtype) for shape, dtype in kinds.values()}) > 1 or _unclear(shapes):
        return False
    return not any(_OTHER_PARTS.search(name) for name in kinds if len(name) < LONG_NAME)


def with_names_as_ids(source: Source, items: Items) -> Source:
    """The source with each item's name, hashed, as its sequence id."""
    column = make_column("sequence", "the names", hashed(items.names), source)
    return source.with_column("sequence", column)


def _refuse_mixture(where: str, items: Items) -> None:
    first = items.tensors[0]
    refuse_dtype(first, f"{where} ({items.word} {items.names[0]})")
    for name, tensor in zip(items.names, items.tensors, strict=True):
        same = tensor.dim() == first.dim() and tensor.shape[-1:] == first.shape[-1:]
        if not same or tensor.dtype != first.dtype:
            raise UserError(
                f"{where}: {items.word} {name} is {list(tensor.shape)} {tensor.dtype}, while "
                f"{items.names[0]} is {list(first.shape)} {first.dtype}; expected the same d_in, dtype "
                f"and number of dimensions in every {items.word}"
            )


def _unclear(shapes: Sequence[tuple[int, ...]]) -> bool:
    """Whether tensors could be batches or layers as well as sequences: all of one shape, or all but a
    smaller last one."""
    if len(shapes) < 2:
        return False
    if len(shapes[0]) == 1:
        return len(shapes) < MANY
    if len(set(shapes)) == 1:
        return True
    return len(shapes[0]) == 2 and len(set(shapes[:-1])) == 1 and shapes[-1][0] < shapes[0][0]


def _sequences(items: Items) -> tuple[tuple[Tensor, ...], NDArray[np.int64] | None]:
    """The blocks of a source and the starts of its sequences: ``[T, D]`` is one sequence, and
    ``[S, T, D]`` is S of them."""
    tensors = [t if t.dim() == 3 else t.unsqueeze(0) for t in items.tensors]
    tensors = [t for t in tensors if t.shape[0]]
    if not tensors:
        return (), None
    if len({t.shape[1] for t in tensors}) == 1:
        return tuple(tensors), None
    lengths = np.concatenate([np.full(t.shape[0], t.shape[1], np.int64) for t in tensors])
    rows = tuple(t.reshape(-1, 1, t.shape[2]) for t in tensors if t.shape[1])
    return rows, np.cumsum([0, *lengths])
