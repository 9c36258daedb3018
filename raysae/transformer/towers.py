"""Finding the language model in a loaded model: its blocks, and the module to call with text.

A model may have several towers (vision, audio, text). The text's tower is the one that owns the input
embeddings. A list of modules counts as its blocks only if, in a test pass, each block's output is the
next block's input. Shapes: B sequences, T tokens.
"""

import re
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from inspect import signature
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from raysae.errors import UserError
from raysae.transformer.layouts import Batch
from raysae.transformer.model_config import needed_setting, refuse_encoder_decoder, text_config
from raysae.transformer.recording import BlockRecord, BlockRecorder

TEST_TOKENS = 12
"""Tokens of each sequence in a test pass."""
PADDING_WARNING = "warn_if_padding_and_no_attention_mask"
"""The method by which transformers looks whether padding is passed without a mask."""
TEST_SEQUENCES = 3
"""The first and the last are the same."""


@dataclass(frozen=True)
class Tower:
    """The language model within a model."""

    forward: nn.Module
    """The module to call with ``input_ids`` and ``attention_mask``."""
    blocks: nn.ModuleList
    name: str
    """The name of ``blocks`` in the model."""
    d_in: int
    ends: tuple[BlockRecord, ...]
    """Where each block's input and output are, from the test pass."""


def find_tower(model: nn.Module) -> Tower:
    """The language model and its blocks.

    Raises UserError when the model is an encoder-decoder, its forward pass over text fails, or its blocks
    cannot be found or told apart.
    """
    config = model.config
    refuse_encoder_decoder(config, type(model).__name__)
    name = type(model).__name__
    layers = needed_setting(config, "num_hidden_layers", name)
    d_in = needed_setting(config, "hidden_size", name)
    lists = list(_lists(model, layers))
    if not lists:
        raise UserError(
            f"{type(model).__name__}: no list of {layers} blocks beside its input embeddings; raysae "
            "cannot find its layers"
        )
    ids_BT = test_ids(model)
    reasons, found = [], []
    forward, records = _first_forward(model, lists, ids_BT, d_in)
    for (name, blocks), ends in zip(lists, records, strict=True):
        reason = _broken_chain(ends, ids_BT, d_in)
        if reason is None:
            found.append(Tower(forward, blocks, name, d_in, tuple(ends)))
        else:
            reasons.append(f"{name}: {reason}")
    if not found:
        raise UserError(
            f"{type(model).__name__}: raysae cannot read its blocks ({'; '.join(reasons)})"
        )
    if len(found) > 1:
        names = ", ".join(tower.name for tower in found)
        raise UserError(
            f"{type(model).__name__}: its blocks may be any of {names}; raysae cannot tell which. Save "
            "the language model alone (save_pretrained) and name that folder"
        )
    return found[0]


def input_embedding(model: nn.Module) -> nn.Module | None:
    """The module that turns token ids into vectors; None when the model names none."""
    try:
        return model.get_input_embeddings()  # type: ignore[operator]
    except (AttributeError, NotImplementedError):
        return None


def longest_text(model: nn.Module, tower: Tower) -> int | None:
    """The tokens that the tower's embeddings of positions reach; None when it has none.

    Where they have a padding row, as in RoBERTa, the first position comes after it.
    """
    inside = set(tower.blocks.modules())  # relative positions, for instance
    reaches = [
        module.num_embeddings - (0 if module.padding_idx is None else module.padding_idx + 1)
        for name, module in _owner(model, tower).named_modules()
        if isinstance(module, nn.Embedding)
        and re.search(r"position|^wpe$", name.split(".")[-1])
        and module not in inside
    ]
    return min(reaches, default=None)


def test_ids(model: nn.Module) -> Tensor:
    """Token ids ``[B, T]`` for a test pass, always the same, without those of special tokens."""
    weight = getattr(input_embedding(model), "weight", None)
    rows = weight.shape[0] if weight is not None else text_config(model.config).vocab_size
    special = set(_special_ids(model.config))
    plain = [number for number in range(min(rows, 4096)) if number not in special]
    draw = torch.Generator().manual_seed(0)
    pick = torch.randint(len(plain), (TEST_SEQUENCES, TEST_TOKENS), generator=draw)
    ids_BT = torch.tensor(plain)[pick]
    ids_BT[-1] = ids_BT[0]
    return ids_BT


def run_tower(
    forward: nn.Module, ids_BT: Tensor, mask_BT: Tensor | None = None, *, masked: bool = True
) -> None:
    """One forward pass over ``ids_BT``; without a mask all tokens count. Not ``masked``: the module gets
    no mask at all, and its attention none but that of the tokens to come."""
    device = next(forward.parameters()).device
    given: dict[str, Any] = {"use_cache": False} if _takes_cache(forward) else {}
    if masked:
        mask_BT = torch.ones_like(ids_BT) if mask_BT is None else mask_BT
        given["attention_mask"] = mask_BT.to(device)
    else:
        vars(forward)[PADDING_WARNING] = lambda *_: None  # it also waits for the GPU
    forward(input_ids=ids_BT.to(device), **given)


def is_declared_causal(tower: Tower) -> bool:
    """Whether the blocks' attention says that it is causal: all modules that say anything."""
    said = [module.is_causal for module in tower.blocks.modules() if hasattr(module, "is_causal")]
    return bool(said) and all(one is True for one in said)


def _takes_cache(forward: nn.Module) -> bool:
    """Whether a module can be told to keep no keys and values for tokens to come."""
    return "use_cache" in signature(forward.forward).parameters


def _owner(model: nn.Module, tower: Tower) -> nn.Module:
    """The smallest module that holds the blocks and the input embeddings."""
    embedding = input_embedding(model)
    parts = tower.name.split(".")[:-1]
    for number in range(len(parts), -1, -1):
        owner = model.get_submodule(".".join(parts[:number]))
        if any(module is embedding for module in owner.modules()):
            return owner
    return model


def _special_ids(config: Any) -> Iterator[int]:
    for part in (config, text_config(config)):
        for key, value in part.to_dict().items():
            if key.endswith(("token_id", "token_index")):
                yield from value if isinstance(value, list) else [value]


def _lists(model: nn.Module, layers: int) -> Iterator[tuple[str, nn.ModuleList]]:
    """The outermost module lists of that length, within the smallest module that owns the input
    embeddings and such a list."""
    embedding = input_embedding(model)
    names = dict(model.named_modules())
    owned = [name for name, module in names.items() if module is embedding] or [""]
    owner = owned[0]
    while True:
        prefix = f"{owner}." if owner else ""
        found = [
            (name, module)
            for name, module in names.items()
            if isinstance(module, nn.ModuleList)
            and len(module) == layers
            and f"{name}.".startswith(prefix)
        ]
        outer = [
            (name, module)
            for name, module in found
            if not any(name.startswith(f"{other}.") for other, _ in found)
        ]
        if outer or not owner:
            yield from outer
            return
        owner = owner.rpartition(".")[0]


def _first_forward(
    model: nn.Module, lists: list[tuple[str, nn.ModuleList]], ids_BT: Tensor, d_in: int
) -> tuple[nn.Module, list[list[BlockRecord]]]:
    """The first module that runs over text alone, and what the blocks of all lists took and gave."""
    batch = Batch(*ids_BT.shape)
    reasons = []
    for name, forward in _forwards(model, lists[0][0]):
        with ExitStack() as stack, torch.inference_mode():
            recorders = [
                [stack.enter_context(BlockRecorder(block, batch, d_in)) for block in blocks]
                for _, blocks in lists
            ]
            try:
                run_tower(forward, ids_BT)
            except Exception as error:
                reasons.append(f"{name}: {type(error).__name__}: {' '.join(str(error).split())}")
                continue
        return forward, [[recorder.record for recorder in row] for row in recorders]
    raise UserError(
        f"{type(model).__name__}: its forward pass over {len(ids_BT)} short texts fails "
        f"({reasons[0][:300]})"
    )


def _forwards(model: nn.Module, blocks: str) -> Iterator[tuple[str, nn.Module]]:
    """The whole model without its head, then ever smaller parts that hold the blocks."""
    base: Any = model.base_model
    yield type(base).__name__, base
    parts = blocks.split(".")[:-1]
    for number in range(1, len(parts) + 1):
        part = model.get_submodule(".".join(parts[:number]))
        if part is not base and hasattr(part, "forward"):
            yield ".".join(parts[:number]), part


def _broken_chain(ends: list[BlockRecord], ids_BT: Tensor, d_in: int) -> str | None:
    """Why the modules are not blocks one after the other; None when they are."""
    for number, block in enumerate(ends):
        if block.calls != 1:
            return f"block {number} runs {block.calls} times in a forward pass"
        if block.entered is None or block.left is None:
            shapes = " and gives ".join(map(str, block.shapes))
            wanted = f"[{len(ids_BT)}, {ids_BT.shape[1]}, {d_in}]"
            return (
                f"over {len(ids_BT)} texts of {ids_BT.shape[1]} tokens, block {number} takes {shapes}; "
                f"expected {wanted}, the residual stream"
            )
    for number, (before, after) in enumerate(pairwise(ends)):
        assert before.left is not None and after.entered is not None
        left_ND, entered_ND = before.left.rows_ND, after.entered.rows_ND
        apart = float((left_ND - entered_ND).norm() / left_ND.norm().clamp(min=1e-300))
        if apart > 4 * max(before.left.eps, after.entered.eps):
            return (
                f"what block {number} gives is not what block {number + 1} takes (they differ by "
                f"{apart:.1%}): the model changes the stream between its blocks"
            )
    return None
