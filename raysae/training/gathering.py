"""Rows drawn in a given order from several blocks of memory, as fast as from one as can be.

The rows of each block are written side by side into one buffer, and from there, while they are in the
processor's cache, into their order. No arithmetic is done, so the bits are those of the blocks.

Shapes: B batch, D d_in.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def gathered(blocks: Sequence[Tensor], starts: Tensor, index_B: Tensor) -> Tensor:
    """The rows numbered ``index_B``, in that order, ``[batch, d_in]``.

    Block n ``[*, d_in]`` has the rows from ``starts[n]`` up to ``starts[n + 1]``. Raises IndexError when
    there is no such row.
    """
    if len(blocks) == 1:
        return selected(blocks[0], index_B)
    number_B, place_B = index_B.sort()
    bounds = torch.searchsorted(number_B, starts).tolist()
    if bounds[0] or bounds[-1] < len(index_B):
        raise IndexError(f"rows {number_B[0]} to {number_B[-1]} of {starts[-1]}")
    parts = [
        (block, start, first, end)
        for block, start, first, end in zip(
            blocks, starts.tolist(), bounds, bounds[1:], strict=False
        )
        if first < end
    ]
    if len(parts) < 2:  # as a rule: a window of rows is smaller than a block
        block, start = parts[0][:2] if parts else (blocks[0], 0)
        return selected(block, index_B - start)
    grouped_BD = blocks[0].new_empty(len(index_B), blocks[0].shape[1])
    for block, start, first, end in parts:
        here_B = (number_B[first:end] - start).to(block.device)
        torch.index_select(block, 0, here_B, out=grouped_BD[first:end])
    order_B = torch.empty_like(place_B)
    order_B[place_B] = torch.arange(len(place_B))
    return selected(grouped_BD, order_B)


def selected(rows_ND: Tensor, index_B: Tensor) -> Tensor:
    """The rows numbered ``index_B`` of one block, on the block's device."""
    return rows_ND.index_select(0, index_B.to(rows_ND.device))
