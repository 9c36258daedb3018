"""Rows drawn in a given order from several blocks of memory, about as fast as from one.

A window of rows is smaller than a block as a rule, so most draws need one block alone. Others are copied
by the compiled kernels where this process has them, else in two steps: the rows of each block side by
side into a buffer, and from there, while they are in the processor's cache, into their order. No
arithmetic is done, so the bits are those of the blocks.

Shapes: B batch, D d_in.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from raysae.training.kernels import Kernels, kernels_if_built


def gathered(blocks: Sequence[Tensor], starts: Tensor, index_B: Tensor) -> Tensor:
    """The rows numbered ``index_B``, in that order, ``[batch, d_in]``.

    Block n ``[*, d_in]`` has the rows from ``starts[n]`` up to ``starts[n + 1]``. Blocks are alike in
    dtype and device. Raises IndexError when there is no such row.
    """
    if len(blocks) == 1:
        return selected(blocks[0], index_B)
    plain = all(block.device.type == "cpu" and block.is_contiguous() for block in blocks)
    if plain and (built := kernels_if_built()):
        return _by_kernel(built, blocks, starts, index_B)
    return _by_block(blocks, starts, index_B)


def selected(rows_ND: Tensor, index_B: Tensor) -> Tensor:
    """The rows numbered ``index_B`` of one block, on the block's device."""
    return rows_ND.index_select(0, index_B.to(rows_ND.device))


def _by_kernel(built: Kernels, blocks: Sequence[Tensor], starts: Tensor, index_B: Tensor) -> Tensor:
    first, index_B = blocks[0], index_B.to("cpu", torch.int64).contiguous()
    rows_BD = first.new_empty(len(index_B), first.shape[1])
    places = torch.tensor([block.data_ptr() for block in blocks])
    row_bytes = first.shape[1] * first.element_size()
    missing = built.prepared(
        "gather",
        (places, starts, len(blocks), index_B, len(index_B), row_bytes, rows_BD, torch.get_num_threads()),
        torch.float32,
    )()  # fmt: skip
    if missing:
        raise IndexError(f"{missing} rows are not among the {int(starts[-1])} rows")
    return rows_BD


def _by_block(blocks: Sequence[Tensor], starts: Tensor, index_B: Tensor) -> Tensor:
    number_B, place_B = index_B.sort()
    bounds = torch.searchsorted(number_B, starts).tolist()
    missing = len(index_B) - (bounds[-1] - bounds[0])
    if missing:
        raise IndexError(f"{missing} rows are not among the {int(starts[-1])} rows")
    spans = zip(blocks, starts.tolist(), bounds, bounds[1:], strict=False)
    parts = [(block, start, at, end) for block, start, at, end in spans if at < end]
    if len(parts) < 2:
        block, start = parts[0][:2] if parts else (blocks[0], 0)
        return selected(block, index_B - start)
    grouped_BD = blocks[0].new_empty(len(index_B), blocks[0].shape[1])
    for block, start, at, end in parts:
        here_B = (number_B[at:end] - start).to(block.device)
        torch.index_select(block, 0, here_B, out=grouped_BD[at:end])
    order_B = torch.empty_like(place_B)
    order_B[place_B] = torch.arange(len(place_B))
    return selected(grouped_BD, order_B)
