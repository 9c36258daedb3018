"""Finding hookpoints in the module tree of a Hugging Face model.

``resid_pre`` is the input of a block and ``resid_post`` its output; ``attn_out`` and ``mlp_out`` are
what its attention and its MLP add to the residual stream.
"""

import inspect

from torch import nn

from raysae.errors import UserError

MODULES = {
    "attn_out": ("attn", "self_attn", "attention.output.dense", "attention", "self_attention"),
    "mlp_out": ("mlp", "output.dense", "ffn", "feed_forward", "fc2"),
}
"""Module names within a block; the first that exists is used. BERT's ``output`` also adds the residual
stream and normalises, so its inner ``dense`` is used there."""

SANDWICH = {"attn_out": "post_attention_layernorm", "mlp_out": "post_feedforward_layernorm"}
"""Gemma 2 and similar models normalise the outputs of attention and MLP before they are added."""


def find_blocks(model: nn.Module, layers: int) -> nn.ModuleList:
    """The transformer's blocks: the outermost module list of length ``layers``.

    Raises UserError when the model has none.
    """
    for module in model.modules():  # parents come before their children
        if isinstance(module, nn.ModuleList) and len(module) == layers:
            return module
    raise UserError(
        f"{type(model).__name__}: no list of {layers} blocks in its module tree; "
        "raysae cannot find its layers"
    )


def find_hook(block: nn.Module, hookpoint: str) -> nn.Module:
    """The module of ``block`` whose input (``resid_pre``) or output is the hookpoint.

    Raises UserError, naming the block's children, when there is none.
    """
    if hookpoint in ("resid_pre", "resid_post"):
        return block
    named = dict(block.named_modules())
    if all(name in named for name in SANDWICH.values()):
        return named[SANDWICH[hookpoint]]
    for name in MODULES[hookpoint]:
        if name in named:
            return _without_residual(block, name, named[name], hookpoint)
    raise UserError(
        f"{type(block).__name__}: no module for {hookpoint} (looked for "
        f"{', '.join(MODULES[hookpoint])}; it has "
        f"{', '.join(name for name, _ in block.named_children())})"
    )


def _without_residual(block: nn.Module, name: str, module: nn.Module, hookpoint: str) -> nn.Module:
    """The module. Raises UserError when it adds the residual stream itself, as BLOOM's modules do."""
    if "residual" in inspect.signature(module.forward).parameters:
        raise UserError(
            f"{type(block).__name__}: its {name} adds the residual stream itself, so its output is "
            f"not {hookpoint}; use resid_pre or resid_post"
        )
    return module
