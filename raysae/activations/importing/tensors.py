"""Files of named tensors: ``.pt`` and ``.safetensors``."""

import pickle
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from torch import Tensor

from raysae.activations.importing.names import (
    find_activation,
    find_role,
    may_be_text,
    other_way,
    plays,
)
from raysae.activations.importing.request import Request
from raysae.activations.importing.source import (
    COLUMN_ROLES,
    STORED_AS,
    Source,
    as_sequences,
    column_lengths,
    dtype_name,
    make_column,
    whole_numbers,
)
from raysae.errors import UserError

ZIP = b"PK\x03\x04"


def open_pt(request: Request) -> Source:
    """Open a file of ``torch.save``: a tensor, or a dictionary (nested or not) that holds one.

    Raises UserError when the file is unreadable, holds other objects, or has no activations.
    """
    path = request.path
    loaded = _load_pt(path)
    if isinstance(loaded, Tensor):
        rows_STD = as_sequences(loaded.detach(), str(path))
        return Source(path, "pt", (path,), (rows_STD,), tokenwise=loaded.dim() == 3)
    return _open_named(request, "pt", dict(_flat(loaded)))


def open_safetensors(request: Request) -> Source:
    """Open a file of named tensors. They stay in mapped memory until rows are read.

    Raises UserError when the file is unreadable or has no activations.
    """
    path = request.path
    try:
        with safe_open(path, framework="pt") as file:
            named = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, KeyError, AttributeError) as error:
        raise UserError(
            f"{path}: not a readable .safetensors file: truncated, damaged or of another kind "
            f"({error})"
        ) from None
    return _open_named(request, "safetensors", named)


def _load_pt(path: Path) -> Any:
    with path.open("rb") as file:
        mapped = file.read(len(ZIP)) == ZIP  # files from before torch 1.6 cannot be mapped
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(path, weights_only=True, mmap=mapped, map_location="cpu")
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path}: it holds objects other than tensors, numbers, lists and dictionaries, and "
            "pickled code is never run; save it again with tensors and lists only "
            f"({_reason(error)})"
        ) from None
    except Exception as error:  # a damaged file can raise almost any error
        raise UserError(
            f"{path}: not a readable file of torch.save: truncated, damaged or of another kind "
            f"({_reason(error)})"
        ) from None


def _reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    causes = [line for line in lines if line.startswith(("WeightsUnpickler", "Unsupported"))]
    first = [*causes, *lines, ""][0].split(". ")[0]
    return f"{type(error).__name__}: {first}".removesuffix(": ")


def _flat(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every leaf of a nested value with its dotted name. A list of numbers is a leaf."""
    nested = isinstance(value, list | tuple) and any(
        isinstance(item, Tensor | Mapping) for item in value
    )
    items = enumerate(value) if nested else value.items() if isinstance(value, Mapping) else None
    if items is None:
        yield prefix.removesuffix("."), value
        return
    for key, item in items:
        yield from _flat(item, f"{prefix}{key}.")


def _open_named(request: Request, form: str, named: dict[str, Any]) -> Source:
    path, keys = request.path, request.options.keys
    tensors = {name: leaf for name, leaf in named.items() if isinstance(leaf, Tensor)}
    possible = [name for name, leaf in tensors.items() if _possible(leaf)]
    name = find_activation(path, possible, {n: _description(t) for n, t in tensors.items()}, keys)
    tensor = named.pop(name).detach()
    source = Source(
        path, form, (path,), (as_sequences(tensor, f"{path}: {name}"),),
        tokenwise=tensor.dim() == 3, activation=name,
    )  # fmt: skip
    for role in COLUMN_ROLES:
        found = _column_name(role, named, source, keys)
        if found is not None:
            values = _numbers(path, role, found, named[found])
            source = source.with_column(role, make_column(role, found, values, source))
    return source


def _possible(leaf: Tensor) -> bool:
    return leaf.dtype in STORED_AS and leaf.dim() in (2, 3)


def _description(leaf: Tensor) -> str:
    return f"{list(leaf.shape)} {dtype_name(leaf.dtype)}"


def _numbers(path: Path, role: str, name: str, leaf: Any) -> NDArray[np.int64]:
    values = whole_numbers(leaf)
    if values is None:
        raise UserError(f"{path}: {name} ({role}) does not hold whole numbers; {other_way(role)}")
    return values


def _column_name(
    role: str, named: dict[str, Any], source: Source, keys: Mapping[str, str]
) -> str | None:
    """The name of the role's leaf. Other leaves may have a similar name, such as those of a config."""
    if role in keys:
        return find_role(role, named, keys, source.path)
    called = [
        name
        for name, leaf in named.items()
        if plays(role, name) and not (may_be_text(name) and whole_numbers(leaf) is None)
    ]
    lengths = column_lengths(role, source.sequences, source.tokens) - {1}
    fitting = [name for name in called if _size(named[name]) in lengths]
    return find_role(role, fitting or called, {}, source.path)


def _size(leaf: Any) -> int:
    if isinstance(leaf, Tensor):
        return leaf.numel()
    return int(np.size(leaf)) if isinstance(leaf, list | tuple) else 1
