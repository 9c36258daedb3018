"""One array of any dimensions as sequences of tokens, by the names that ``--axes`` gives them.

Shapes: S sequences, T tokens of each, D d_in.
"""

from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
from torch import Tensor

from raysae.activations.importing.columns import make_column
from raysae.activations.importing.source import Source, as_sequences, refuse_dtype
from raysae.errors import UserError

AXES = ("sequence", "layer", "position", "token", "d_in")
ONE = "1"
BY_AXES = "--axes"
"""The name of the columns that follow from the dimensions."""


def of_tensor(
    path: Path, form: str, files: tuple[Path, ...], tensor: Tensor, name: str, axes: str | None
) -> Source:
    """The source of a tensor called ``name`` (empty when it has none), in mapped memory.

    Without ``axes``, it is ``[rows, d_in]`` or ``[sequences, tokens, d_in]``; with them, each layer and
    position is a block. Raises UserError when the shape does not fit.
    """
    where = f"{path}: {name}" if name else str(path)
    if axes is None:
        rows_STD = as_sequences(tensor, where)
        return Source(path, form, files, (rows_STD,), tokenwise=tensor.dim() == 3, activation=name)
    refuse_dtype(tensor, where)
    names = _names(tensor, axes, where)
    return _blocks(
        Source(path, form, files, (_by_name(tensor, names, {}),), True, name), tensor, names
    )


def _names(tensor: Tensor, axes: str, where: str) -> list[str]:
    names = [name.strip() for name in axes.split(",")]
    twice = [name for name in names if name != ONE and names.count(name) > 1]
    unknown = [name for name in names if name not in (*AXES, ONE)]
    if unknown or twice or "d_in" not in names or len(names) != tensor.dim():
        raise UserError(
            f"--axes {axes}: {where} is {list(tensor.shape)}; expected {tensor.dim()} names, one for "
            f"each dimension, of {', '.join(AXES)} (each once, d_in among them) or 1"
        )
    wide = [i for i, name in enumerate(names) if name == ONE and tensor.shape[i] != 1]
    if wide:
        raise UserError(
            f"--axes {axes}: dimension {wide[0]} of {where} has {tensor.shape[wide[0]]} entries, not 1"
        )
    return names


def _by_name(tensor: Tensor, names: list[str], at: dict[str, int]) -> Tensor:
    """One layer and position as ``[S, T, D]``, a view; the first of each where ``at`` gives none."""
    kept = [name for name in names if name in ("sequence", "token", "d_in")]
    index = tuple(slice(None) if name in kept else at.get(name, 0) for name in names)
    view = tensor[index]
    for place, name in enumerate(("sequence", "token")):
        if name not in kept:
            view, kept = view.unsqueeze(place), [*kept[:place], name, *kept[place:]]
    return view.permute([kept.index(name) for name in ("sequence", "token", "d_in")])


def _blocks(source: Source, tensor: Tensor, names: list[str]) -> Source:
    """The source with a block for each layer and position, and columns that say which."""
    sizes = {name: tensor.shape[i] for i, name in enumerate(names)}
    places = list(product(range(sizes.get("layer", 1)), range(sizes.get("position", 1))))
    blocks = tuple(
        _by_name(tensor, names, {"layer": layer, "position": position})
        for layer, position in places
    )
    source = replace(
        source, blocks_STD=blocks, tokenwise="token" in names, copies=len(places)
    ).saying(f"dimensions {', '.join(f'{n} {size}' for n, size in sizes.items() if n != ONE)}")
    each = len(blocks[0])
    for role, numbers in zip(("layer", "position"), zip(*places, strict=True), strict=True):
        if role in names:
            column = make_column(role, BY_AXES, np.repeat(np.array(numbers), each), source)
            source = source.with_column(role, column)
    if len(places) > 1:
        ids = np.tile(np.arange(each, dtype=np.int64), len(places))
        source = source.with_column("sequence", make_column("sequence", BY_AXES, ids, source))
    return source
