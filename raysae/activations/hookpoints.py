"""Where a hookpoint lies in a Hugging Face model, found from its module tree.

``resid_pre`` is what enters a block, ``resid_post`` what leaves it, ``attn_out`` and ``mlp_out``
what its attention and its MLP add.
"""

from torch import nn

from raysae.errors import UserError

ATTENTION_NAMES = ("attn", "self_attn", "attention")
MLP_NAMES = ("mlp",)


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
    names = ATTENTION_NAMES if hookpoint == "attn_out" else MLP_NAMES
    children = dict(block.named_children())
    for name in names:
        if name in children:
            return children[name]
    raise UserError(
        f"{type(block).__name__}: no child for {hookpoint} (looked for {', '.join(names)}; it has "
        f"{', '.join(children)})"
    )
