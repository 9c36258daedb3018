"""Files of one array: ``.npy`` and raw memory maps."""

import warnings
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raysae.activations.importing.request import Request
from raysae.activations.importing.source import Source, as_sequences, whole_numbers
from raysae.activations.schema import ITEM_BYTES, torch_dtype
from raysae.errors import UserError


def open_npy(request: Request) -> Source:
    """Open a .npy array in mapped memory. Raises UserError when it is damaged or holds no activations."""
    path = request.path
    array = _load(path)
    if array.dtype.kind != "f" or array.dtype.itemsize not in (2, 4, 8):
        raise UserError(
            f"{path}: it holds {array.dtype} values; expected float16, float32 or float64"
            " (.npy has no bfloat16: use .safetensors)"
        )
    if not array.dtype.isnative:
        raise UserError(
            f"{path}: its byte order is not this machine's ({array.dtype.str}); save it again with "
            "array.astype(array.dtype.newbyteorder('='))"
        )
    blocks_STD = (as_sequences(mapped_tensor(array), str(path)),)
    return Source(path, "npy", (path,), blocks_STD, tokenwise=array.ndim == 3)


def open_raw(request: Request) -> Source:
    """Open a file of bare values; the options ``d_in`` and ``raw_dtype`` give their shape and dtype.

    Raises UserError when an option is missing, or the file's size does not fit them.
    """
    path, options = request.path, request.options
    if options.d_in is None or options.raw_dtype is None:
        raise UserError(
            f"{path}: a raw file does not say what it holds; give --d-in N and --raw-dtype "
            f"{'|'.join(ITEM_BYTES)}"
        )
    size, width = path.stat().st_size, options.d_in * ITEM_BYTES[options.raw_dtype]
    if not size or size % width:
        raise UserError(
            f"{path}: it has {size:,} bytes, no whole number of rows of {width:,} bytes (--d-in "
            f"{options.d_in} of {options.raw_dtype}); check both, or the file was truncated"
        )
    rows_ND = map_rows(path, torch_dtype(options.raw_dtype), options.d_in)
    return Source(path, "raw", (path,), (rows_ND.unsqueeze(1),), tokenwise=False)


def read_ids(path: Path) -> NDArray[np.int64]:
    """Read the sequence ids of a .npy file. Raises UserError when they are not whole numbers."""
    if not path.is_file():
        raise UserError(f"{path}: no such file of sequence ids (--sequences)")
    array = _load(path)
    ids = whole_numbers(np.asarray(array))
    if ids is None:
        raise UserError(f"{path}: it holds {array.dtype} values; expected whole numbers as ids")
    return ids


def map_rows(path: Path, dtype: torch.dtype, d_in: int) -> Tensor:
    """A file's bytes as rows ``[N, d_in]`` of ``dtype``, in mapped memory."""
    return mapped_tensor(np.memmap(path, np.uint8, mode="r")).view(dtype).view(-1, d_in)


def mapped_tensor(array: NDArray[np.generic]) -> Tensor:
    """A tensor that shares an array's memory, which may be read-only; do not write to it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array)


def _load(path: Path) -> NDArray[np.generic]:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        if "Python objects in dtype" in str(error):
            raise UserError(
                f"{path}: it holds Python objects, and pickled code is never run; save an array of "
                "numbers"
            ) from None
        raise UserError(
            f"{path}: not a readable .npy array: empty, truncated, damaged or of another kind"
        ) from None
    if not isinstance(array, np.ndarray):
        raise UserError(f"{path}: an archive of several arrays; save one with numpy.save")
    return array
