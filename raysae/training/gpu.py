"""What a packed step does on a GPU alone: Triton kernels for selection and Adam, and CUDA graphs.

They need a GPU. For tests, ``TRITON_INTERPRET=1`` runs them on CPU tensors. Where Triton is not
installed, ``launches`` is false and callers use torch's own operations. Shapes: N SAEs, B batch, F
d_sae.
"""

import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
LARGEST_ROW = 2**16
"""The most elements of a row that one program can process."""
WIDEST_PART = 2**11
"""Elements of a row that a program of Adam processes, where it need not see whole rows: its registers
hold no more of wide ones."""

if find_spec("triton") is not None:
    import triton
    import triton.language as tl

    @triton.jit
    def _select_rows(pre, out, k_N, rows, columns, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
        """One program per row. Find the k-th largest value by bisection on the bits, which order
        positive floats as their values do; of the values equal to it, take the first ones. NaN of
        either sign is the largest, as in torch's topk, so that the loss is NaN."""
        row = tl.program_id(0).to(tl.int64)
        k = tl.load(k_N + row // rows).to(tl.int32)
        place = tl.arange(0, BLOCK)
        inside = place < columns
        value = tl.load(pre + row * columns + place, mask=inside, other=0.0)
        value = tl.where(value <= 0, 0.0, value)
        bits = value.to(tl.int32, bitcast=True) & 0x7FFFFFFF
        low = 1  # at least k values (or all positive ones) are >= low, fewer than k are >= high
        high = tl.minimum(tl.max(bits, axis=0), 0x7FFFFFFE) + 1
        if tl.sum((bits > 0).to(tl.int32), axis=0) <= k:
            high = 2
        while high - low > 1:
            probe = low + (high - low) // 2
            count = tl.sum((bits >= probe).to(tl.int32), axis=0)
            if count == k:
                low = probe
                high = probe + 1
            elif count > k:
                low = probe
            else:
                high = probe
        above = bits > low
        equal = bits == low
        room = k - tl.sum(above.to(tl.int32), axis=0)
        early = tl.cumsum(equal.to(tl.int32), axis=0) <= room
        result = tl.where(above | (equal & early), value, 0.0)
        tl.store(out + row * columns + place, result, mask=inside)

    @triton.jit
    def _adam_rows(  # type: ignore[no-untyped-def]
        p, g, m, v, clip_N, rate_N, root_N, alive_N, rows, columns, first, second, epsilon, tiny,
        UNIT: tl.constexpr, BLOCK: tl.constexpr,
    ):  # fmt: skip
        """One program per row of a matrix, or per part of it: clipping, Adam and, for decoder rows,
        which are one part each, the unit norm."""
        row = tl.program_id(0).to(tl.int64)
        sae = row // rows
        if tl.load(alive_N + sae) == 0:
            return
        clip, rate = tl.load(clip_N + sae), tl.load(rate_N + sae)
        root = tl.load(root_N)
        place = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
        inside = place < columns
        at = row * columns + place
        gradient = tl.load(g + at, mask=inside, other=0.0) * clip
        moved = tl.load(m + at, mask=inside, other=0.0)
        square = tl.load(v + at, mask=inside, other=0.0)
        weight = tl.load(p + at, mask=inside, other=0.0)
        moved = moved + (1 - first) * (gradient - moved)
        square = square * second + (1 - second) * gradient * gradient
        weight = weight - rate * moved / (tl.sqrt(square) / root + epsilon)
        if UNIT:
            norm = tl.sqrt(tl.sum(tl.where(inside, weight * weight, 0.0), axis=0))
            weight = weight / tl.maximum(norm, tiny)
        tl.store(m + at, moved, mask=inside)
        tl.store(v + at, square, mask=inside)
        tl.store(p + at, weight, mask=inside)


def launches(tensor: Tensor) -> bool:
    """Whether the kernels can process ``tensor``: it is on a GPU and its rows are short enough."""
    placed = tensor.is_cuda or INTERPRETED
    return placed and find_spec("triton") is not None and tensor.shape[-1] <= LARGEST_ROW


def captures(tensor: Tensor) -> bool:
    """Whether steps on ``tensor`` are captured as CUDA graphs: it is on a GPU."""
    return tensor.is_cuda


def current(device: torch.device) -> AbstractContextManager[object]:
    """Makes ``device`` the current one while the block runs, as launches and captures need it."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def new_pool() -> Any:
    """A pool of memory that several graphs can share."""
    return torch.cuda.graph_pool_handle()


def captured(work: Callable[[], None], pool: Any, device: torch.device) -> Callable[[], object]:
    """Capture what ``work`` launches on ``device``, without running it; returns what runs it."""
    graph = torch.cuda.CUDAGraph()
    # torch's own stream for captures is one of the device that captured first
    with torch.cuda.graph(graph, pool=pool, stream=torch.cuda.Stream(device)):
        work()
    return graph.replay


def select_rows(pre_NBF: Tensor, k_N: Tensor) -> Tensor:
    """The k largest positive pre-activations of each row ``[saes, batch, d_sae]``; the others are
    0.

    ``pre_NBF [saes, batch, d_sae]`` is float32, ``k_N [saes]`` an integer for each SAE.
    """
    pre_NBF = pre_NBF.contiguous()
    selected_NBF = torch.empty_like(pre_NBF)
    rows, columns = pre_NBF.shape[1:]
    block = triton.next_power_of_2(columns)
    with current(pre_NBF.device):  # Triton launches on the current device, wherever tensors are
        _select_rows[(pre_NBF.shape[0] * rows,)](
            pre_NBF, selected_NBF, k_N, rows, columns, BLOCK=block, num_warps=_warps(block)
        )
    return selected_NBF


def adam_rows(
    p: Tensor, g: Tensor, m: Tensor, v: Tensor, clip_N: Tensor, rate_N: Tensor, root: Tensor,
    alive_N: Tensor, betas: tuple[float, float], epsilon: float, unit: bool,
) -> None:  # fmt: skip
    """Torch's Adam on float32 matrices ``[saes, rows, columns]``, in place: ``p`` parameters, ``g``
    gradients, ``m`` and ``v`` the two moments.

    ``clip_N`` scales the gradient. ``rate_N`` is the learning rate with the first moment's bias
    correction, ``root [1]`` the square root of the second moment's bias correction. ``unit``
    normalizes the rows to unit norm afterwards. SAEs with a false ``alive_N`` do not change.
    """
    rows, columns = p.shape[1:]
    block = triton.next_power_of_2(columns)
    if not unit:
        block = min(block, WIDEST_PART)
    with current(p.device):
        _adam_rows[(p.shape[0] * rows, triton.cdiv(columns, block))](
            p, g.contiguous(), m, v, clip_N, rate_N, root, alive_N.to(torch.int32), rows, columns,
            betas[0], betas[1], epsilon, torch.finfo(torch.float32).tiny, UNIT=unit, BLOCK=block,
            num_warps=_warps(block),
        )  # fmt: skip


def _warps(block: int) -> int:
    """Warps of a program: about 32 elements per thread."""
    return min(max(block // 1024, 1), 32)
