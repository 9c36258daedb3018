"""Mapped memory: arrays as tensors, a temporary file for unpacked rows, and a check of the free space."""

import shutil
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raysae.errors import UserError

PIECE_BYTES = 8 * 2**20


def mapped_tensor(array: NDArray[np.generic]) -> Tensor:
    """A tensor that shares an array's memory, which may be read-only; do not write to it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array)


def unpacked(array: Any, folder: Path) -> Tensor:
    """A file's array of any byte order, or a data set that gives slices as arrays, unpacked to a
    temporary file in ``folder``: a tensor of its shape in mapped memory.

    Raises UserError when the disk is too small.
    """
    dtype, shape = np.dtype(array.dtype).newbyteorder("="), tuple(array.shape)
    size = dtype.itemsize * int(np.prod(shape))
    if not size:
        return torch.from_numpy(np.zeros(shape, dtype))
    refuse_full_disk(folder, size, "unpacking the values")
    scratch, step = Scratch(folder), max(PIECE_BYTES * shape[0] // size, 1)
    for start in range(0, shape[0], step):
        scratch.write(np.asarray(array[start : start + step]).astype(dtype, copy=False))
    return scratch.rows(torch.from_numpy(np.zeros(0, dtype)).dtype, shape[1:])


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
