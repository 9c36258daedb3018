"""What the programs of this folder share: batches that tell how fast they were used."""

import time
from collections.abc import Iterator

from torch import Tensor


class TimedBatches:
    """The batches of ``rows_ND``; the clock starts when batch ``skip`` is asked for."""

    def __init__(self, rows_ND: Tensor, batch: int, skip: int):
        self.batches, self.skip = rows_ND.split(batch), skip
        self.timed_rows = len(rows_ND) - skip * batch

    def __iter__(self) -> Iterator[Tensor]:
        for number, batch_BD in enumerate(self.batches):
            if number == self.skip:
                self.started = time.perf_counter()
            yield batch_BD

    def tokens_per_second(self) -> float:
        """Of the steps since the clock started, until now."""
        return self.timed_rows / (time.perf_counter() - self.started)
