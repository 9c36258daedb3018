"""Files of named arrays: which is the activation, and what the others say of its rows.

Shapes: S sequences, T tokens of each, N rows, D d_in.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from raysae.activations.importing.axes import BY_AXES, of_tensor
from raysae.activations.importing.columns import (
    as_array,
    column_lengths,
    holds_text,
    ids_of,
    make_column,
    numbers_or_refuse,
    refuse_group_within,
    size_of,
    text_ids,
    whole_numbers,
)
from raysae.activations.importing.lists import (
    Items,
    are_prompts,
    as_items,
    of_items,
    with_names_as_ids,
)
from raysae.activations.importing.masks import with_mask
from raysae.activations.importing.names import (
    NONE,
    find_activation,
    find_role,
    find_text,
    may_be_other,
    plays,
    without_texts,
)
from raysae.activations.importing.options import ImportOptions
from raysae.activations.importing.request import Request
from raysae.activations.importing.same_texts import with_ids_of_tokens
from raysae.activations.importing.source import (
    COLUMN_ROLES,
    STORED_AS,
    Source,
    dtype_name,
)


@dataclass(frozen=True)
class Stored:
    """An array in a file that is read only when it is the activation."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    read: Callable[[], Tensor]


@dataclass(frozen=True)
class Other:
    """A value in a file that is neither numbers nor text."""

    what: str


def open_named(request: Request, form: str, named: Mapping[str, Any]) -> Source:
    """The source of a file with these leaves by name: tensors, arrays, ``Stored`` arrays, lists.

    Raises UserError when none, or more than one, could be the activations, or a column does not fit.
    """
    path, options, named = request.path, request.options, dict(named)
    if "activation" not in options.keys:
        prompts, others = _prompts(named), {n: v for n, v in named.items() if not _is_tensor(v)}
        if prompts is None:
            prompts, others = _grouped_prompts(named)
        if prompts is not None:
            source = of_items(path, form, (path,), prompts, "", options.keys)
            return with_columns(with_names_as_ids(source, prompts), others, options)
    if list(named) == [""] and isinstance(named[""], Tensor):  # nothing to choose from
        return of_tensor(path, form, (path,), named[""].detach(), "", options.axes)
    contents = {name: _description(leaf) for name, leaf in named.items()}
    name = find_activation(path, _possible(named), contents, options.keys)
    return with_columns(_of_leaf(request, form, name, named.pop(name), named), named, options)


def _of_leaf(
    request: Request, form: str, name: str, leaf: Any, others: Mapping[str, Any]
) -> Source:
    """The source of the activations in ``leaf``, a tensor or a list of them."""
    path, options = request.path, request.options
    items = as_items(leaf)
    if items is not None and len(items.tensors) > 1:
        has_ids = any(plays(role, other) for role in ("sequence", "group") for other in others)
        return of_items(path, form, (path,), items, name, options.keys, has_ids)
    if items is not None:
        leaf = items.tensors[0]
    tensor = leaf.read() if isinstance(leaf, Stored) else torch.as_tensor(leaf).detach()
    tensor, words = _in_sequences(tensor, others, options)
    return of_tensor(path, form, (path,), tensor, name, options.axes).saying(*words)


def with_columns(source: Source, named: Mapping[str, Any], options: ImportOptions) -> Source:
    """The source with the columns and the mask that are among ``named``, by their names and the keys.

    Raises UserError when several could be the same, or one does not fit.
    """
    for role in COLUMN_ROLES:
        name = _column_name(role, named, source, options.keys)
        if name is not None:
            values = numbers_or_refuse(role, name, named[name], source)
            source = source.with_column(role, make_column(role, name, values, source))
            if holds_text(named[name]):
                source = source.saying(f"{name} is text: its hash is the id")
    if "group" not in options.keys:
        refuse_group_within(source)
    source = with_mask(source, named, options)
    return with_ids_of_texts(source, named, options)


def with_ids_of_texts(source: Source, named: Mapping[str, Any], options: ImportOptions) -> Source:
    """The source with sequence ids that follow from the texts, where the file has no ids: from token
    ids, or from a column of texts."""
    if options.sequences is not None:
        return source
    if source.ids is not None and source.ids.name != BY_AXES:
        return with_ids_of_tokens(source, replace_ids=False)
    if source.tokenwise and source.column("token_id") is not None:
        return with_ids_of_tokens(source, replace_ids=True)
    if source.ids is not None or options.keys.get("sequence") == NONE:
        return source
    lengths = column_lengths("sequence", source)
    name = find_text(
        name for name, leaf in named.items() if size_of(leaf) in lengths and holds_text(leaf)
    )
    values = None if name is None else text_ids(named[name])
    if name is None or values is None:
        return source
    column = make_column("sequence", name, values, source)
    return source.with_column("sequence", column).saying(f"{name} is text: its hash is the id")


def _is_tensor(leaf: Any) -> bool:
    return isinstance(leaf, Tensor | Stored)


def _prompts(named: Mapping[str, Any]) -> Items | None:
    """All tensors as items when they can only be the sequences of one data set."""
    tensors = {name: leaf for name, leaf in named.items() if _is_tensor(leaf)}
    others = sum(size_of(leaf) > 1 for name, leaf in named.items() if name not in tensors)
    kinds = {name: (tuple(leaf.shape), leaf.dtype) for name, leaf in tensors.items()}
    if not are_prompts(kinds, others):
        return None
    read = [t.read() if isinstance(t, Stored) else t.detach() for t in tensors.values()]
    return Items(read, "tensor", list(tensors))


def _grouped_prompts(named: dict[str, Any]) -> tuple[Items | None, dict[str, Any]]:
    """The activations of a dictionary of prompts, each with the same leaves (``p1.acts``, ``p1.mask``),
    and the lists of the other leaves; None, and ``named``, when it is none."""
    prompts: dict[str, dict[str, Any]] = {}
    for name, leaf in named.items():
        prompt, _, last = name.rpartition(".")
        prompts.setdefault(prompt, {})[last] = leaf
    lasts = {frozenset(leaves) for leaves in prompts.values()}
    possible = [_possible(leaves) for leaves in prompts.values()]
    if "" in prompts or len(lasts) > 1 or any(len(found) != 1 for found in possible):
        return None, named
    last = possible[0][0]
    items = _prompts({prompt: leaves[last] for prompt, leaves in prompts.items()})
    if items is None:
        return None, named
    others = {
        one: [p[one] for p in prompts.values()] for one in sorted(next(iter(lasts))) if one != last
    }
    return items, others


def _possible(named: Mapping[str, Any]) -> list[str]:
    """The names of what could be activations: those of 4 and more dimensions only if nothing else is."""
    usual: list[str] = []
    wide: list[str] = []
    for name, leaf in named.items():
        if isinstance(leaf, Tensor | Stored) and leaf.dtype in STORED_AS:
            (usual if len(leaf.shape) in (2, 3) else wide if len(leaf.shape) > 3 else []).append(
                name
            )
        elif as_items(leaf) is not None:
            usual.append(name)
    return usual or wide


def _description(leaf: Any) -> str:
    if isinstance(leaf, Tensor | Stored):
        return f"{list(leaf.shape)} {dtype_name(leaf.dtype)}"
    if isinstance(leaf, Other):
        return leaf.what
    if isinstance(leaf, np.ndarray):
        return f"{list(leaf.shape)} {leaf.dtype}"
    if isinstance(leaf, list | tuple) and leaf:
        return f"{len(leaf):,} items, the first {_description(leaf[0])}"
    return type(leaf).__name__


def _in_sequences(
    tensor: Tensor, named: Mapping[str, Any], options: ImportOptions
) -> tuple[Tensor, list[str]]:
    """Rows ``[S * T, D]`` as ``[S, T, D]`` where token ids or a mask beside them are ``[S, T]``."""
    if tensor.dim() != 2 or options.axes is not None:
        return tensor, []
    for role in ("token_id", "mask", "padding"):
        for name, leaf in named.items():
            asked = options.keys.get(role)
            if name != asked and (asked is not None or not plays(role, name)):
                continue
            values = as_array(leaf) if size_of(leaf) == len(tensor) else None
            if values is not None and values.ndim == 2 and values.shape[1] > 1:
                words = f"rows read as {[*values.shape, tensor.shape[1]]}, by the shape of {name}"
                return tensor.unflatten(0, values.shape), [words]
    return tensor, []


def _column_name(
    role: str, named: Mapping[str, Any], source: Source, keys: Mapping[str, str]
) -> str | None:
    """The name of the role's leaf. Other leaves may have a similar name, such as those of a config."""
    if role in keys:
        return find_role(role, named, keys, source.path)
    values = ids_of if role in ("sequence", "group") else whole_numbers
    lengths = column_lengths(role, source) - {1}
    texts = {name for name in named if may_be_other(name) and holds_text(named[name])}
    called = [
        name
        for name, leaf in named.items()
        if plays(role, name)
        and not (may_be_other(name) and values(leaf) is None)
        and (name not in texts or size_of(leaf) in lengths)
    ]
    called = without_texts(role, called, texts)
    fitting = [name for name in called if size_of(named[name]) in lengths]
    if role == "group":  # of common words, only those that fit count
        called = [name for name in called if not may_be_other(name)]
    return find_role(role, fitting or called, {}, source.path)
