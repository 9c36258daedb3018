"""Tensors of other people's files: whether their values are really there."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def tensor_problem(tensor: "Tensor") -> str | None:
    """Why a tensor's values cannot be read one by one, in words; None when they can.

    A sparse, nested or quantized tensor, one on the meta device, and a view in which a value is at
    several places are such. The last can claim any size.
    """
    layout = str(tensor.layout).removeprefix("torch.")
    if tensor.device.type == "meta":
        return "on the meta device, so it has no values"
    if layout != "strided" or tensor.is_nested:
        return f"not dense (its layout is {layout})"
    if tensor.is_quantized:
        return "quantized"
    if overlaps(tensor):
        return "a view that repeats its values (expanded or overlapping); save it with .clone()"
    return None


def overlaps(tensor: "Tensor") -> bool:
    """Whether two places of a dense tensor may be one value in memory."""
    reach = 0
    sized = [
        (step, size) for step, size in zip(tensor.stride(), tensor.shape, strict=True) if size > 1
    ]
    for step, size in sorted(sized):
        if step <= reach:
            return tensor.numel() > 0
        reach += step * (size - 1)
    return False
