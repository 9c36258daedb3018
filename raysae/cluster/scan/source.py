"""The datasource: one read task a piece, which knows the byte ranges that it reads."""

from collections.abc import Iterable
from functools import partial
from typing import Any

import pyarrow as pa
from ray.data.block import BlockMetadata
from ray.data.datasource import Datasource, ReadTask

from raysae.cluster.scan.store_scan import Ranges, opened, read_block, rows_of, stamps_of
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
        row_bytes = opened(self.place).row_bytes
        return [self._task(start, stop, row_bytes) for start, stop in self.pieces]

    def _task(self, start: int, stop: int, row_bytes: int) -> ReadTask:
        rows, stamps = rows_of(self.place, self.site, self.split), stamps_of(self.place, self.site)
        reads = list(rows.reads(start, stop))
        files = {segment.shard.file for segment, *_ in reads}
        seen = {name: stamps[name] for name in files}
        ranges = Ranges(self.place, reads, stop - start, seen)
        metadata = BlockMetadata(
            num_rows=ranges.rows,
            size_bytes=ranges.rows * row_bytes,
            exec_stats=None,
            input_files=None,
        )
        return ReadTask(partial(_blocks, ranges), metadata)


def _blocks(ranges: Ranges) -> Iterable[pa.Table]:
    return [read_block(ranges)]
