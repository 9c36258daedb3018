"""Room on disk: is there enough, and a place for rows that must be unpacked before they are read."""

import shutil
import tempfile
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raysae.activations.importing.arrays import mapped_tensor
from raysae.errors import UserError


def refuse_full_disk(folder: Path, needed: int, what: str) -> None:
    """Raise UserError when ``needed`` bytes do not fit where ``folder`` is or will be."""
    place = existing_parent(folder)
    free = shutil.disk_usage(place).free
    if needed > free:
        raise UserError(
            f"{place}: {what} takes {needed / 1e9:.2f} GB, the disk has {free / 1e9:.2f} GB free; "
            "make room or name a folder on another disk"
        )


def existing_parent(folder: Path) -> Path:
    """The folder, or the nearest one above it that is there."""
    folder = folder.absolute()
    while not folder.is_dir():
        folder = folder.parent
    return folder


class Scratch:
    """Rows unpacked to a nameless file, which is gone whenever and however the process ends."""

    def __init__(self, folder: Path):
        self._file = tempfile.TemporaryFile(dir=existing_parent(folder))  # noqa: SIM115

    def write(self, rows: NDArray[np.generic]) -> None:
        self._file.write(np.ascontiguousarray(rows).view(np.uint8).data)

    def rows(self, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
        """All that was written, as a tensor ``[N, *shape]`` in mapped memory."""
        self._file.flush()
        written = np.memmap(self._file, np.uint8, mode="r")
        self._file.close()  # the map holds on to it
        return mapped_tensor(written).view(dtype).view(-1, *shape)
