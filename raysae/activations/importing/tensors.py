"""Files of named tensors: ``.pt`` and ``.safetensors``."""

import pickle
import warnings
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from raysae.activations.damage import DAMAGE, reason
from raysae.activations.importing.named import open_named
from raysae.activations.importing.request import Request
from raysae.activations.importing.source import STORED_AS, Source
from raysae.errors import UserError
from raysae.storage.tensors import tensor_problem

ZIP = b"PK\x03\x04"
MOST_DEPTH, MOST_CONTAINERS = 50, 200_000
"""Containers in each other, and in all, at most."""
MOST_TENSORS = 10_000_000
"""Values in the containers of one level, at most."""
MOST_REPEATED = 2**28
"""A mask may be a view that repeats its values, up to this size."""


def open_pt(request: Request) -> Source:
    """Open a file of ``torch.save``: a tensor, a list of them, or a dictionary (nested or not) of either.

    Raises UserError when the file is unreadable, holds other objects, or has no activations.
    """
    path = request.path
    loaded = _load_pt(path)
    _refuse_unreal(path, loaded)
    if isinstance(loaded, Tensor | list | tuple) and not _of_mappings(loaded):
        return open_named(request, "pt", {"": loaded})
    return open_named(request, "pt", dict(_flat(loaded)))


def open_safetensors(request: Request) -> Source:
    """Open a file of named tensors. They stay in mapped memory until rows are read.

    Raises UserError when the file is unreadable or has no activations.
    """
    path = request.path
    try:
        with safe_open(path, framework="pt") as file:
            named = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, *DAMAGE) as error:
        raise UserError(
            f"{path}: not a readable .safetensors file: truncated, damaged or of another kind "
            f"({reason(error)})"
        ) from None
    return open_named(request, "safetensors", named)


def _refuse_unreal(path: Path, loaded: Any) -> None:
    """Raise UserError when a container or a tensor in it claims more than the file holds.

    A pickle can put one list into another a million times, and one value into a tensor of any size.
    """
    level, count = [("", loaded)], 0
    for _ in range(MOST_DEPTH):
        containers = []
        for name, value in level:
            if isinstance(value, Tensor):
                _refuse_unreal_tensor(path, name, value)
            else:
                containers.append((name, value))
        count += len(containers)
        inner = (pair for name, value in containers for pair in _items(name, value))
        if count > MOST_CONTAINERS:
            raise UserError(f"{path}: more than {MOST_CONTAINERS:,} lists and values; save tensors")
        level = list(islice(inner, MOST_TENSORS))
        if not level:
            return
    raise UserError(f"{path}: nested more than {MOST_DEPTH} levels deep; save tensors by name")


def _items(name: str, value: Any) -> Iterable[tuple[str, Any]]:
    """What a container holds. Numbers and texts in a list, which may be many, are left out."""
    if isinstance(value, Mapping):
        return [(f"{name}.{key}".removeprefix("."), item) for key, item in value.items()]
    if isinstance(value, list | tuple):
        return [(name, one) for one in value if isinstance(one, Tensor | Mapping | list | tuple)]
    return []


def _refuse_unreal_tensor(path: Path, name: str, tensor: Tensor) -> None:
    problem = tensor_problem(tensor)
    rows = tensor.dtype in STORED_AS and tensor.dim() > 1
    if problem and (rows or tensor.is_meta or tensor.numel() > MOST_REPEATED):
        raise UserError(
            f"{path}: {name or 'the tensor'} {list(tensor.shape)} is {problem}; expected a dense tensor "
            "with its own values; save it again"
        )


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
    """Every leaf of a nested value with its dotted name. A list is a leaf, but of dictionaries with the
    same keys, as of one a prompt, the lists of their values are."""
    if _of_mappings(value):
        same = len({frozenset(one) for one in value}) == 1
        value = (
            {key: [one[key] for one in value] for key in value[0]}
            if same
            else dict(enumerate(value))
        )
    if not isinstance(value, Mapping):
        yield prefix.removesuffix("."), value
        return
    for key, item in value.items():
        yield from _flat(item, f"{prefix}{key}.")


def _of_mappings(value: Any) -> bool:
    listed = isinstance(value, list | tuple) and len(value) > 0
    return listed and all(isinstance(one, Mapping) for one in value)
