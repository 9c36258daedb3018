"""Where a hookpoint lies in a Hugging Face model, found from its module tree.

``resid_pre`` is what enters a block, ``resid_post`` what leaves it, ``attn_out`` and ``mlp_out``
what its attention and its MLP add to the residual stream.
"""

import inspect

from torch import nn

from raysae.errors import UserError

MODULES = {
    "attn_out": ("attn", "self_attn", "attention.output.dense", "attention", "self_attention"),
    "mlp_out": ("mlp", "output.dense", "ffn", "feed_forward", "fc2"),
}
"""Where to look in a block, the first that is there. BERT's ``output`` also adds and normalises, so
there it is the ``dense`` within."""

SANDWICH = {"attn_out": "post_attention_layernorm", "mlp_out": "post_feedforward_layernorm"}
"""Gemma 2 and its kin normalise what attention and MLP give before it is added."""


def find_blocks(model: nn.Module, layers: int) -> nn.ModuleList:
    """The transformer's list of ``layers`` blocks: the outermost module list of that length.

    Raises UserError when the tree has none.
    """
    for module in model.modules():  # parents come before their children
        if isinstance(module, nn.ModuleList) and len(module) == layers:
            return module
    raise UserError(
        f"{type(model).__name__}: no list of {layers} blocks in its module tree; "
        "raysae cannot tell where its layers are"
    )


def find_hook(block: nn.Module, hookpoint: str) -> nn.Module:
    """The module of ``block`` whose input (``resid_pre``) or output a hookpoint reads.

    Raises UserError, naming the block's children, when it has none.
    """
    if hookpoint in ("resid_pre", "resid_post"):
        return block
    named = dict(block.named_modules())
    if all(name in named for name in SANDWICH.values()):
        return named[SANDWICH[hookpoint]]
    for name in MODULES[hookpoint]:
        if name in named:
            return _adding_nothing(block, name, named[name], hookpoint)
    raise UserError(
        f"{type(block).__name__}: no module for {hookpoint} (looked for "
        f"{', '.join(MODULES[hookpoint])}; it has "
        f"{', '.join(name for name, _ in block.named_children())})"
    )


def _adding_nothing(block: nn.Module, name: str, module: nn.Module, hookpoint: str) -> nn.Module:
    """The module, unless it adds the residual stream itself, as BLOOM's do."""
    if "residual" in inspect.signature(module.forward).parameters:
        raise UserError(
            f"{type(block).__name__}: its {name} adds the residual stream itself, so its output is "
            f"not {hookpoint}; use resid_pre or resid_post"
        )
    return module
