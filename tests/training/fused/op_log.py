"""The log of a packed step on torch's meta device: each operation and each launch, with its bytes."""

from collections import Counter
from typing import Any, NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from raysae.training.fused import launching
from raysae.training.packed import PackedStep

HOST_READS = {
    "_local_scalar_dense",
    "nonzero",
    "masked_select",
    "unique",
    "unique2",
    "equal",
    "item",
}
"""Operations whose result, or whose result's shape, the host must wait for."""


class Logged(NamedTuple):
    """An operation."""

    name: str
    shapes: tuple[tuple[int, ...], ...]
    """Of its results."""
    nbytes: int
    """Bytes that it moves: its operands and its results, each once."""
    made: int
    """Bytes of the results that are no views."""


class OpLog(TorchDispatchMode):
    """Logs torch's operations while it is active."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[Logged] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        result = func(*args, **kwargs or {})
        given = _storages((args, kwargs))
        results = [leaf for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
        name = func.overloadpacket.__name__
        new = [one for one in results if one.untyped_storage()._cdata not in given]
        moves = 0
        if new or name.endswith("_") or "out" in (kwargs or {}):
            moves = sum(_bytes(one) for one in (*_tensors((args, kwargs)), *results))
        if name in ("empty", "empty_like", "new_empty", "empty_strided"):
            moves = 0
        shapes = tuple(tuple(one.shape) for one in results)
        self.operations.append(Logged(name, shapes, moves, sum(_bytes(one) for one in new)))
        return result


def _tensors(tree: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def _storages(tree: Any) -> set[int]:
    return {one.untyped_storage()._cdata for one in _tensors(tree)}


def _bytes(tensor: torch.Tensor) -> int:
    """Bytes of what it refers to: an expanded dimension counts once."""
    sizes = zip(tensor.shape, tensor.stride(), strict=True)
    count = 1
    for size, stride in sizes:
        count *= size if stride else 1
    return count * tensor.element_size()


class StepLog(NamedTuple):
    """What a step does."""

    operations: list[Logged]
    launches: list[launching.Launch]

    @property
    def nbytes(self) -> int:
        """Bytes that it moves."""
        operations = sum(one.nbytes for one in self.operations)
        return operations + sum(one.nbytes for one in self.launches)

    @property
    def names(self) -> Counter[str]:
        """How often each operation and each kernel runs."""
        return Counter([one.name for one in self.operations] + [x.kernel for x in self.launches])

    @property
    def shapes(self) -> list[tuple[Any, ...]]:
        """What ran, with the shapes of its results."""
        return [(one.name, one.shapes) for one in self.operations] + [
            (one.kernel, one.grid, tuple(tuple(t.shape) for t in one.writes.values()))
            for one in self.launches
        ]

    def largest(self, count: int) -> list[tuple[str, int]]:
        """What moves the most bytes."""
        every = [(one.name, one.nbytes) for one in self.operations]
        every += [(one.kernel, one.nbytes) for one in self.launches]
        return sorted(every, key=lambda one: -one[1])[:count]


def step_log(step: PackedStep, batch: int, columns: int = 0) -> StepLog:
    """The log of a step."""
    saes, _, d_in = step.p["W_dec"].shape
    x_NBD = torch.empty(saes, batch, d_in, device="meta")
    rows = torch.empty((), dtype=torch.int64, device="meta")
    log = OpLog()
    with torch.no_grad(), log, launching.recorded() as launched:
        step._train(x_NBD, rows, columns)
    return StepLog(log.operations, launched)
