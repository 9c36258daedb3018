"""What the programs of this folder share: how they take jobs, and batches that tell how fast they were
used."""

import json
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from safetensors.torch import load_file
from torch import Tensor


def serve(train: Callable[[Tensor, dict[str, Any]], dict[str, float]]) -> None:
    """Run ``train`` on the rows of the file named on the command line, once a line of standard input,
    which is a job in JSON; what it returns is a line of standard output."""
    rows_ND = load_file(sys.argv[1])["batches"]
    for line in sys.stdin:
        print(json.dumps(train(rows_ND, json.loads(line))), flush=True)


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
