"""Launches of the kernels, by name; what was launched can be recorded, on torch's meta device, too."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor

from raysae.training import gpu

MODULES = {
    "select_rows": "selection", "count_digits": "batch_selection", "count_chosen": "batch_selection",
    "write_chosen": "batch_selection", "decode_rows": "passes", "latent_gradients": "passes",
    "weighted_rows": "passes", "adam_rows": "adam",
}  # fmt: skip
"""The module of ``raysae.training.fused.kernels`` that holds each kernel."""
_logs: list[list["Launch"]] = []


class Launch(NamedTuple):
    """A launch of a kernel: the programs, and the arguments by their names."""

    kernel: str
    grid: tuple[int, ...]
    reads: Mapping[str, Tensor]
    writes: Mapping[str, Tensor]
    """Tensors that it updates are among both."""
    numbers: Mapping[str, int | float]
    constants: Mapping[str, int | bool]
    """What it is compiled for."""
    warps: int

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The tensors that it is given."""
        return {**self.reads, **self.writes}

    @property
    def nbytes(self) -> int:
        """Bytes that it moves where each of its tensors passes once, those that it updates twice.

        What one program reads again, as the rows of a dictionary that fits in the GPU's cache, is not
        counted again.
        """
        return sum(tensor.nbytes for tensor in chain(self.reads.values(), self.writes.values()))


def launch(made: Launch) -> None:
    """Launch it on the device of its tensors; on the meta device it is recorded only."""
    for log in _logs:
        log.append(made)
    assert all(tensor.is_contiguous() for tensor in made.tensors.values()), made.kernel
    device = next(iter(made.writes.values())).device
    if device.type == "meta":
        return
    with gpu.current(device):  # Triton launches on the current device, wherever tensors are
        kernel(made.kernel)[made.grid](
            **made.tensors, **made.numbers, **made.constants, num_warps=made.warps
        )


@contextmanager
def recorded() -> Iterator[list[Launch]]:
    """A list of what is launched while the block runs."""
    log: list[Launch] = []
    _logs.append(log)
    try:
        yield log
    finally:
        _logs.remove(log)


@cache
def kernel(name: str) -> Any:
    """The kernel of that name; importing it needs Triton."""
    return getattr(import_module(f"raysae.training.fused.kernels.{MODULES[name]}"), name)


def power_of_two(number: int) -> int:
    """The least power of two that is no smaller."""
    return 1 << max(number - 1, 0).bit_length()


def warps_for(block: int, each: int = 8) -> int:
    """Warps of a program whose threads have ``each`` elements of a block, 1 to 16."""
    return min(max(block // (32 * each), 1), 16)


def nothing(like: Tensor) -> Tensor:
    """An argument that a kernel does not read."""
    return torch.empty(0, dtype=torch.int32, device=like.device)
