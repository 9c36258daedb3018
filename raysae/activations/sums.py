"""The statistics of a store, recomputed from its rows and compared with the manifest's.

Shapes: N rows, D d_in.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raysae.activations.manifest import SiteEntry
from raysae.activations.writer import STATISTICS_ROWS, WrittenShard, row_sums, site_entry

RELATIVE, ABSOLUTE = 1e-9, 1e-12
"""Tolerances of a statistic: relative to itself, and relative to the rows' root mean square norm."""


@dataclass(frozen=True)
class Problem:
    """One place where the files differ from the manifest or from the format."""

    file: str
    """Path relative to the store; the site's folder when the problem concerns a whole site."""
    found: str
    expected: str


class RowSums:
    """The sums of a shard's rows, in the same blocks as the writer's, so equal to the bit."""

    def __init__(self, d_in: int):
        self._sum_D, self._square_sum = np.zeros(d_in), 0.0
        self._waiting: list[Tensor] = []

    def add(self, rows_ND: Tensor) -> None:
        *whole, rest = torch.cat([*self._waiting, rows_ND]).split(STATISTICS_ROWS)
        for block_ND in whole:
            self._add(block_ND)
        self._waiting = [rest]

    def finish(self) -> tuple[NDArray[np.float64], float]:
        for block_ND in self._waiting:
            self._add(block_ND)
        return self._sum_D, self._square_sum

    def _add(self, block_ND: Tensor) -> None:
        sum_D, square_sum = row_sums(block_ND)
        self._sum_D += sum_D
        self._square_sum += square_sum


def statistics_problems(entry: SiteEntry, shards: list[WrittenShard]) -> Iterator[Problem]:
    """Compare a site's statistics with those of its rows, if all its shards could be summed."""
    if not shards or len(shards) < len(entry.shards) or len(shards[0].sum_D) != len(entry.mean):
        return
    found = site_entry(entry.site, shards)
    norm = found.mean_square_norm**0.5
    for name, unit in (("mean", norm), ("mean_square_norm", norm**2), ("total_variance", norm**2)):
        value, stated = np.atleast_1d(getattr(found, name)), np.atleast_1d(getattr(entry, name))
        far = ~np.isclose(value, stated, rtol=RELATIVE, atol=ABSOLUTE * unit)
        if far.any():
            i = int(far.argmax())
            which = f"{name}[{i}]" if name == "mean" else name
            yield Problem(entry.site.folder, f"{which} {value[i]:.12g}", f"{stated[i]:.12g}")
