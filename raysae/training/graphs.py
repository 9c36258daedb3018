"""CUDA graphs of a step: captured once for each kind of step, then replayed.

All graphs of a step share one pool of memory: they run one after another, and all that they leave lies
in tensors that were made outside of them. Shapes: N SAEs, B batch, D d_in.
"""

from collections import Counter
from collections.abc import Callable, Hashable

import torch
from torch import Tensor

from raysae.training import gpu

EAGER_STEPS = 2
"""Steps of each kind that run without a graph before one is captured."""


class Graphs:
    """Steps ``train(x_NBD, rows, kind)`` that are replayed from graphs.

    ``x_NBD`` and ``rows``, the scalar number of real rows, are copied into buffers that every graph
    reads.
    """

    def __init__(self, train: Callable[[Tensor, Tensor, int], None]):
        self.train = train
        self._seen = Counter[Hashable]()
        self._replays: dict[Hashable, Callable[[], object]] = {}
        self._buffers: dict[int, Tensor] = {}
        self._rows: Tensor | None = None
        self._pool: object = None

    def take(self, x_NBD: Tensor, rows: int, kind: int) -> None:
        """Make a step of this kind; the first ones and a capture take longer."""
        input_NBD = self._input(x_NBD, rows)
        assert self._rows is not None
        key = x_NBD.shape[1], kind
        if self._seen[key] < EAGER_STEPS:
            self.train(input_NBD, self._rows, kind)
        else:
            self._replay(key, input_NBD, self._rows, kind)
        self._seen[key] += 1

    def _replay(self, key: Hashable, input_NBD: Tensor, rows: Tensor, kind: int) -> None:
        if key not in self._replays:
            self._pool = self._pool or gpu.new_pool()
            work = lambda: self.train(input_NBD, rows, kind)  # noqa: E731
            self._replays[key] = gpu.captured(work, self._pool, input_NBD.device)
        self._replays[key]()

    def _input(self, x_NBD: Tensor, rows: int) -> Tensor:
        """The buffer of the batches of this size, with this batch in it."""
        if self._rows is None:
            self._rows = torch.zeros((), dtype=torch.int64, device=x_NBD.device)
        self._rows.fill_(rows)
        size = x_NBD.shape[1]
        if size not in self._buffers:
            self._buffers[size] = torch.empty_like(x_NBD)
        return self._buffers[size].copy_(x_NBD)
