"""Files of one array: ``.npy``, a folder of them, and raw memory maps."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from raysae.activations.damage import DAMAGE
from raysae.activations.importing.columns import ids_of
from raysae.activations.importing.lists import Items, of_items
from raysae.activations.importing.named import open_named
from raysae.activations.importing.request import Request
from raysae.activations.importing.scratch import mapped_tensor, unpacked
from raysae.activations.importing.source import Source
from raysae.activations.schema import ITEM_BYTES, torch_dtype
from raysae.errors import UserError
from raysae.storage.untrusted import regular_file, usable_path

NPY = ".npy"


def open_npy(request: Request) -> Source:
    """Open a .npy array in mapped memory. Raises UserError when it is damaged or holds no activations."""
    tensor = _activations(request.path, request)
    return open_named(request, "npy", {"": tensor})


def open_npy_folder(request: Request) -> Source:
    """Open a folder of .npy arrays, in the order of their names. Raises UserError as ``of_items``
    does."""
    path, files = request.path, npy_files(request.path)
    tensors = [_activations(file, request) for file in files]
    items = Items(tensors, "file", [file.name for file in files])
    return of_items(
        path, "npy folder", tuple(files), items, "", request.options.keys,
        request.options.sequences is not None,
    )  # fmt: skip


def npy_files(path: Path) -> list[Path]:
    """A folder's .npy files sorted by name, without those in subfolders."""
    files = sorted(file for file in path.iterdir() if file.suffix.lower() == NPY)
    return [regular_file(file) for file in files if not file.name.startswith((".", "_"))]


def _activations(path: Path, request: Request) -> Tensor:
    """The file's array in mapped memory. Raises UserError when it does not hold activations."""
    array = _load(path)
    if array.dtype.kind != "f" or array.dtype.itemsize not in (2, 4, 8):
        raise UserError(
            f"{path}: it holds {array.dtype} values; expected float16, float32 or float64"
            " (.npy has no bfloat16: use .safetensors)"
        )
    if array.ndim == 0:
        raise UserError(f"{path}: it holds one number; expected activations [rows, d_in]")
    return mapped_tensor(array) if array.dtype.isnative else unpacked(array, request.scratch)


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
    values = mapped_tensor(np.memmap(path, np.uint8, mode="r"))
    rows_ND = values.view(torch_dtype(options.raw_dtype)).view(-1, options.d_in)
    return Source(path, "raw", (path,), (rows_ND.unsqueeze(1),), tokenwise=False)


def read_ids(path: Path) -> NDArray[np.int64]:
    """Read the sequence ids of a .npy file, whole numbers or text, which is hashed. Raises UserError when
    they are neither."""
    if not usable_path(path).is_file():
        raise UserError(f"{path}: no such file of sequence ids (--sequences)")
    array = _load(path)
    ids = ids_of(np.asarray(array))
    if ids is None:
        raise UserError(
            f"{path}: it holds {array.dtype} values; expected whole numbers or text as ids"
        )
    return ids


def _load(path: Path) -> NDArray[np.generic]:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except DAMAGE as error:
        if "Python objects in dtype" in str(error):
            raise UserError(
                f"{path}: it holds Python objects, and pickled code is never run; save an array of "
                "numbers"
            ) from None
        raise UserError(
            f"{path}: not a readable .npy array: empty, truncated, damaged or of another kind"
        ) from None
    if not isinstance(array, np.ndarray):
        raise UserError(f"{path}: an archive of arrays; expected one .npy array; name it .npz")
    return array
