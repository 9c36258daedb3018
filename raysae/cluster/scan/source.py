"""The datasource: one read task a piece, which knows the byte ranges that it reads."""

from collections.abc import Iterable
from functools import partial
from typing import Any

import pyarrow as pa
from ray.data.block import BlockMetadata
from ray.data.datasource import Datasource, ReadTask

from raysae.cluster.scan.store_scan import opened, read_block, rows_of
from raysae.sites import Site


class PieceSource(Datasource):
    """Pieces of a split's rows, in the order given; each becomes one block."""

    def __init__(self, place: str, site: Site, split: str, pieces: list[tuple[int, int]]):
        self.place, self.site, self.split, self.pieces = place, site, split, pieces

    def estimate_inmemory_data_size(self) -> int:
        """Bytes of all pieces."""
        return sum(stop - start for start, stop in self.pieces) * opened(self.place).row_bytes

    def get_read_tasks(self, parallelism: int, *args: Any, **kwargs: Any) -> list[ReadTask]:
        """One task a piece, whatever the ``parallelism``."""
        rows, row_bytes = (
            rows_of(self.place, self.site, self.split),
            opened(self.place).row_bytes,
        )
        tasks = []
        for start, stop in self.pieces:
            reads, count = list(rows.reads(start, stop)), stop - start
            metadata = BlockMetadata(
                num_rows=count, size_bytes=count * row_bytes, exec_stats=None, input_files=None
            )
            tasks.append(ReadTask(partial(_blocks, self.place, reads, count), metadata))
        return tasks


def _blocks(place: str, reads: list[tuple[Any, int, int, int]], rows: int) -> Iterable[pa.Table]:
    return [read_block(place, reads, rows)]
