"""Rows from what people give: tensors and numpy arrays of floats, and nothing else.

Shapes: N rows, D d_in.
"""

import os
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
WANTED = "a tensor or array [rows, d_in] of floats"


def as_rows(given: Any, argument: str) -> Tensor:
    """A tensor or array as rows ``[N, D]`` without a gradient.

    Raises ValueError, naming ``argument``, when it is something else, or of another shape or type.
    """
    if isinstance(given, np.ndarray):
        given = _tensor_of(given, argument)
    if not isinstance(given, Tensor):
        raise ValueError(f"{argument} is {_described(given)}; it must be {WANTED}{_hint(given)}")
    if given.layout != torch.strided:
        raise ValueError(f"{argument} is a sparse tensor; give {argument}.to_dense()")
    if given.dtype not in DTYPES:
        name = str(given.dtype).removeprefix("torch.")
        raise ValueError(
            f"{argument} holds {name}; rows must be floats, such as {argument}.float()"
        )
    if given.dim() != 2 or not given.shape[1]:
        shape = list(given.shape)
        hint = f"; {argument}.flatten(0, -2) makes rows of it" if given.dim() > 2 else ""
        hint = f"; {argument}[None] is one row" if given.dim() == 1 else hint
        raise ValueError(f"{argument} is {shape}; it must be [rows, d_in]{hint}")
    return given.detach()


def _tensor_of(array: np.ndarray, argument: str) -> Tensor:
    if array.dtype.kind != "f" or array.dtype.itemsize > 8:
        hint = "" if array.dtype.kind == "O" else f", such as {argument}.astype('float32')"
        raise ValueError(f"{argument} is an array of {array.dtype}; rows must be floats{hint}")
    native = array.dtype.newbyteorder("=")
    plain = array.flags.writeable and all(stride >= 0 for stride in array.strides)
    return torch.from_numpy(array if plain and array.dtype == native else array.astype(native))


def _described(given: Any) -> str:
    """What was given, in words."""
    if given is None or isinstance(given, str):
        return repr(given)
    name = type(given).__name__
    article = "an" if name[0] in "aeiouAEIOU" else "a"
    return f"{article} {name}"


def _hint(given: Any) -> str:
    """What to do with something that is no tensor."""
    if isinstance(given, str | os.PathLike):
        return "; raysae.open_store(FOLDER).site(SITE) gives the rows of a store's site"
    if hasattr(given, "site"):
        return "; its site(raysae.Site(LAYER, POSITION)) has the rows"
    if hasattr(given, "to_numpy"):
        return "; its to_numpy() gives one"
    if isinstance(given, list | tuple):
        return "; torch.tensor(...) makes one of a list of numbers"
    if isinstance(given, Iterable) and not isinstance(given, Mapping):
        return "; it is read more than once, so an iterator will not do"
    return ""
