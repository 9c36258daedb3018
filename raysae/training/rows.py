"""The training rows: blocks in their storage dtype, read by global row number, never copied whole.

Shapes: B batch, D d_in.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

EVALUATION_BATCH = 4096


class Rows:
    """Rows ``[rows, d_in]`` held as one or more blocks, such as views of shared memory.

    Which block holds a row never shows: row numbers run over all blocks, so the same rows in other
    blocks train to the same bits.
    """

    def __init__(self, blocks: Tensor | Sequence[Tensor]):
        blocks = [blocks] if isinstance(blocks, Tensor) else list(blocks)
        self.blocks = [block for block in blocks if len(block)]
        if not self.blocks:
            raise ValueError("no rows: every block is empty")
        shapes = {tuple(block.shape[1:]) for block in self.blocks}
        if len(shapes) != 1 or len(next(iter(shapes))) != 1:
            raise ValueError(f"rows must be [rows, d_in] of one d_in; found {sorted(shapes)}")
        self.d_in = self.blocks[0].shape[1]
        self._starts = torch.tensor([0, *(len(block) for block in self.blocks)]).cumsum(0)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def to(self, device: str) -> "Rows":
        """The same rows on ``device``; no copy when they are there already."""
        return Rows([block.to(device) for block in self.blocks])

    def gather(self, index_B: Tensor) -> Tensor:
        """Rows ``index_B`` in that order, as float32 ``[batch, d_in]``."""
        if len(self.blocks) == 1:
            block = self.blocks[0]
            return block[index_B.to(block.device)].float()
        block_of_B = torch.bucketize(index_B, self._starts[1:], right=True)
        x_BD = torch.empty(len(index_B), self.d_in, device=self.blocks[0].device)
        for number in block_of_B.unique().tolist():
            here = (block_of_B == number).nonzero().squeeze(1)
            rows = index_B[here] - self._starts[number]
            block = self.blocks[number]
            x_BD[here.to(block.device)] = block[rows.to(block.device)].float()
        return x_BD

    def batches(self, batch_size: int = EVALUATION_BATCH) -> Iterator[Tensor]:
        """All rows in order, as float32 batches that do not depend on the blocks."""
        for index in torch.arange(len(self)).split(batch_size):
            yield self.gather(index)

    def order(self, seed: int, epoch: int) -> Tensor:
        """The order of an epoch's rows, a function of the arguments and the number of rows alone."""
        generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
        return torch.randperm(len(self), generator=generator)
