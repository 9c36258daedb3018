"""Disk space: a check of the free space, and a temporary file for unpacked rows."""

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
    """Raise UserError when ``needed`` bytes do not fit on the disk of ``folder``, which need not exist.

    ``what`` says in the message what takes the space.
    """
    place = existing_parent(folder)
    free = shutil.disk_usage(place).free
    if needed > free:
        raise UserError(
            f"{place}: {what} takes {needed / 1e9:.2f} GB, the disk has {free / 1e9:.2f} GB free; "
            "make room or name a folder on another disk"
        )


def existing_parent(folder: Path) -> Path:
    """The folder, or the nearest parent folder that exists."""
    folder = folder.absolute()
    while not folder.is_dir():
        folder = folder.parent
    return folder


class Scratch:
    """A temporary file of unpacked rows. It has no name, so it is removed however the process ends."""

    def __init__(self, folder: Path):
        self._file = tempfile.TemporaryFile(dir=existing_parent(folder))  # noqa: SIM115

    def write(self, rows: NDArray[np.generic]) -> None:
        """Append the bytes of ``rows``."""
        self._file.write(np.ascontiguousarray(rows).view(np.uint8).data)

    def rows(self, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
        """All rows written so far, as a tensor ``[N, *shape]`` in mapped memory. Call it once, last."""
        self._file.flush()
        written = np.memmap(self._file, np.uint8, mode="r")
        self._file.close()  # the map still holds the file open
        return mapped_tensor(written).view(dtype).view(-1, *shape)
