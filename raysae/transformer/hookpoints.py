"""Where a hookpoint is read: the taps of every layer.

``resid_pre`` is the input of a block and ``resid_post`` its output; ``attn_out`` and ``mlp_out`` are
what its attention and its MLP add to the residual stream.
"""

import math
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from raysae.errors import UserError
from raysae.transformer.layouts import Batch, Layout
from raysae.transformer.model_config import text_config
from raysae.transformer.recording import BlockRecord, BlockRecorder, Kind, Record
from raysae.transformer.sublayers import Sublayers, find_sublayers, rest_of_sum, sum_error
from raysae.transformer.towers import Tower, run_tower, test_ids

KINDS: dict[str, Kind] = {"attn_out": "attention", "mlp_out": "mlp"}


@dataclass(frozen=True)
class Tap:
    """A tensor that a module takes or gives. A hookpoint is the sum of its taps times their factors."""

    module: nn.Module
    index: int
    """The number of the tensor, among all that the module takes or gives."""
    layout: Layout
    is_input: bool = False
    factor: float = 1.0


@dataclass(frozen=True)
class Taps:
    """The taps of a hookpoint by layer, and how they were found."""

    by_layer: dict[int, tuple[Tap, ...]]
    sublayers: dict[int, Sublayers]
    """What each block adds, for ``attn_out`` and ``mlp_out``."""


def find_taps(model: nn.Module, tower: Tower, hookpoint: str, layers: Iterable[int]) -> Taps:
    """The taps of a hookpoint at some layers, from a test pass.

    Raises UserError when a block's output is not the sum of its input and what its sublayers add.
    """
    if hookpoint not in KINDS:
        return Taps({layer: (_end(tower, layer, hookpoint),) for layer in layers}, {})
    found: dict[int, tuple[Tap, ...]] = {}
    sublayers: dict[int, Sublayers] = {}
    constants = _constants(text_config(model.config))

    def search(layer: int, record: BlockRecord) -> None:
        block = tower.blocks[layer]
        there = find_sublayers(record, constants)
        added = None if there is None else there.of(KINDS[hookpoint])
        if there is None or added is None:
            raise UserError(_refusal(block, layer, hookpoint, there, record))
        sublayers[layer] = there
        found[layer] = tuple(
            Tap(block.get_submodule(t.place.module), t.place.index, t.place.layout, False, t.factor)
            for t in added.terms
        )

    record_blocks(tower, layers, test_ids(model), search)
    return Taps(found, sublayers)


def check_sums(tower: Tower, sublayers: dict[int, Sublayers], ids_BT: Tensor) -> None:
    """Check on ``ids_BT`` that each block's output is its input plus what was found in the test pass:
    ``sublayers`` by layer.

    The first and the last sequence must be the same. Raises UserError with the figure where it is not.
    """

    def check(layer: int, record: BlockRecord) -> None:
        rest = rest_of_sum(record, sublayers[layer])
        if rest is not None:
            raise UserError(
                f"{type(tower.blocks[layer]).__name__} (layer {layer}): over these texts its output is "
                f"not its input plus what attention and MLP add; {rest:.2%} of what it adds is left "
                "over. attn_out and mlp_out cannot be read here; use resid_pre or resid_post"
            )

    if sublayers:
        record_blocks(tower, sublayers, ids_BT, check)


def record_blocks(tower: Tower, layers: Iterable[int], ids_BT: Tensor, use: Any) -> None:
    """One forward pass; ``use(layer, record)`` is called with the record of every layer's block."""
    batch = Batch(*ids_BT.shape)
    with ExitStack() as stack, torch.inference_mode():
        for layer in layers:
            done = _with_layer(use, layer)
            block = tower.blocks[layer]
            stack.enter_context(BlockRecorder(block, batch, tower.d_in, inside=True, done=done))
        run_tower(tower.forward, ids_BT)


def _with_layer(use: Any, layer: int) -> Any:
    return lambda record: use(layer, record)


def _end(tower: Tower, layer: int, hookpoint: str) -> Tap:
    ends = tower.ends[layer]
    record: Record | None = ends.entered if hookpoint == "resid_pre" else ends.left
    assert record is not None, "checked when the tower was found"
    place = record.place
    return Tap(tower.blocks[layer], place.index, place.layout, place.is_input)


def _constants(config: Any) -> list[float]:
    """The numbers of a configuration that a sublayer's output may be multiplied by."""
    values = [v for v in config.to_dict().values() if isinstance(v, float) and v]
    depth = math.sqrt(config.num_hidden_layers)  # MiniCPM divides by it
    return [*values, *(1 / value for value in values), *(value / depth for value in values)]


def _refusal(
    block: nn.Module, layer: int, hookpoint: str, there: Sublayers | None, record: BlockRecord
) -> str:
    name = f"{type(block).__name__} (layer {layer})"
    children = ", ".join(child for child, _ in block.named_children())
    advice = "use resid_pre or resid_post"
    if there is not None:
        what = KINDS[hookpoint]
        return f"{name}: what it adds comes from no {what} (it has {children}); {advice}"
    error = sum_error(record)
    figure = (
        f"its output is its input plus what {children} give"
        if error is None
        else f"input plus attention plus MLP miss its output by {error:.0%} of what it adds"
    )
    return (
        f"{name}: raysae finds no {hookpoint} whose sum with the stream is the block's output "
        f"({figure}; it has {children}); {advice}"
    )
