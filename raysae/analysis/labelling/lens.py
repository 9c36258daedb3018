"""Logit lens: which tokens a direction of the residual stream makes more and less likely.

Shapes: L directions, D d_in, V vocabulary, T tokens of a test pass, K tokens shown.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from raysae.errors import UserError
from raysae.transformer.layouts import tensors_of, tensors_taken
from raysae.transformer.towers import Tower, find_tower, test_ids

LOGITS_TOGETHER = 2**24
"""Values of logits that are in memory at a time."""
CLOSE = 1e-3
"""How far the parts may be from the whole, as a share of its largest value."""
FORM = (
    "the direction alone goes through the model's final norm, with the norm's weights, and its "
    "unembedding; what a zero vector gives (biases) and the mean over the vocabulary are taken off. As a "
    "norm divides by the size of what it is given, this is the linearised effect on the logits up to one "
    "positive factor for each feature: it ranks tokens, and is no logit"
)
"""How tokens are ranked (nostalgebraist 2020; as for SAE features, Bricken et al. 2023)."""


@dataclass(frozen=True)
class Promoted:
    """The tokens that each direction promotes and suppresses most, ``[L, K]``."""

    up: NDArray[np.int64]
    up_by: NDArray[np.float32]
    down: NDArray[np.int64]
    down_by: NDArray[np.float32]


class Lens:
    """The end of a language model: what comes after its last block. Raises UserError without a head, or
    when its end cannot be run apart from its blocks."""

    def __init__(self, model: nn.Module):
        self.model = model
        self.head = _head(model)
        self.tower = find_tower(model)
        self.steps = _between(model, self.tower, self.head)

    @property
    def device(self) -> torch.device:
        """The model's device."""
        return next(self.model.parameters()).device

    @torch.inference_mode()
    def logits(self, rows_LD: Tensor) -> Tensor:
        """The logits ``[L, V]`` of rows that the last block would give, in float32."""
        rows_LD = rows_LD.to(self.device, next(self.head.parameters()).dtype)
        for step in self.steps:
            rows_LD = step(rows_LD)
        return self.head(rows_LD).float()

    @torch.inference_mode()
    def promoted(self, directions_LD: Tensor, most: int, alive: Callable[[], None]) -> Promoted:
        """The ``most`` tokens that each direction promotes, and suppresses.

        Raises UserError when the directions are not of the residual stream.
        """
        d_in = self.tower.d_in
        if directions_LD.shape[1] != d_in:
            raise UserError(
                f"its rows have {directions_LD.shape[1]} values, the residual stream {d_in}"
            )
        zero_V = self.logits(torch.zeros(1, d_in))[0]
        most = min(most, len(zero_V))
        found: list[tuple[Tensor, ...]] = []
        for some_LD in directions_LD.split(max(1, LOGITS_TOGETHER // len(zero_V))):
            effect_LV = self.logits(some_LD) - zero_V
            effect_LV -= effect_LV.mean(dim=1, keepdim=True)
            up, down = effect_LV.topk(most), effect_LV.topk(most, largest=False)
            found.append((up.indices, up.values, down.indices, down.values))
            alive()
        columns = [torch.cat(some).cpu().numpy() for some in zip(*found, strict=True)]
        return Promoted(*columns)


def _head(model: nn.Module) -> nn.Module:
    try:
        head = model.get_output_embeddings()  # type: ignore[operator]
    except (AttributeError, NotImplementedError):
        head = None
    if not isinstance(head, nn.Module):
        raise UserError(f"{type(model).__name__} has no language-model head")
    return head


@torch.inference_mode()
def _between(model: nn.Module, tower: Tower, head: nn.Module) -> list[Any]:
    """The modules that a row goes through after the last block, up to the head; found by a test pass, and
    compared with it. Raises UserError when they are not so simple."""
    last = tower.blocks[-1]
    inside = set(tower.blocks.modules())
    order: list[nn.Module] = []
    seen: dict[str, Tensor] = {}

    def left(_module: nn.Module, _args: tuple, output: Any) -> None:
        seen["block"] = next(iter(tensors_of(output)))
        order.clear()

    def into_head(_module: nn.Module, args: tuple, kwargs: dict, _output: Any) -> None:
        seen["head"] = tensors_taken(args, kwargs)[0]

    def ran(module: nn.Module, _args: tuple, _output: Any) -> None:
        if "block" in seen and "head" not in seen:
            order.append(module)

    hooks = [
        last.register_forward_hook(left),
        head.register_forward_hook(into_head, with_kwargs=True),
    ]
    leaves = [m for m in model.modules() if m not in inside and not list(m.children())]
    hooks += [leaf.register_forward_hook(ran) for leaf in leaves if leaf is not head]
    try:
        ids_BT = test_ids(model).to(next(model.parameters()).device)
        model(input_ids=ids_BT, attention_mask=torch.ones_like(ids_BT))
    finally:
        for hook in hooks:
            hook.remove()
    _check(model, order, seen)
    return list(order)


def _check(model: nn.Module, order: list[nn.Module], seen: dict[str, Tensor]) -> None:
    """Raise UserError unless the modules take the last block's rows to those of the head."""
    refused = partial(_unlike, type(model).__name__)
    if seen.keys() != {"block", "head"}:
        raise refused("the head does not run after the last block")
    rows = seen["block"]
    try:
        for step in order:
            rows = step(rows)
    except Exception as error:  # modules may take anything
        raise refused(f"{type(error).__name__}") from None
    if not isinstance(rows, Tensor) or rows.shape != seen["head"].shape:
        raise refused("the rows of its head have another shape")
    apart = (rows - seen["head"]).abs().max() / seen["head"].abs().max().clamp_min(1e-30)
    if float(apart) > CLOSE:
        raise refused(f"they differ by {float(apart):.1%}")


def _unlike(model: str, reason: str) -> UserError:
    return UserError(f"the end of {model} cannot be run apart from its blocks ({reason})")
