"""Files of several arrays: ``.npz`` archives and HDF5.

Arrays that could be activations are mapped where they lie in the file as they are, else unpacked to a
temporary file; pickled objects are never read.
"""

import importlib
import math
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from raysae.activations.damage import damage_told
from raysae.activations.importing.named import Other, Stored, open_named
from raysae.activations.importing.request import Request
from raysae.activations.importing.scratch import (
    PIECE_BYTES,
    Scratch,
    mapped_tensor,
    refuse_full_disk,
    unpacked,
)
from raysae.activations.importing.source import Source
from raysae.errors import UserError

NPY = ".npy"
LOCAL_HEADER = 30
"""Bytes of a zip member's header before its name and its extra field."""


POINTER = 8
"""Bytes of a text in memory, at least."""
MOST_BYTES = 2**32
"""Bytes of an array beside the activations, unpacked, at most."""


def open_npz(request: Request) -> Source:
    """Open an archive of ``numpy.savez``. Raises UserError when it is damaged or has no activations."""
    with damage_told(request.path, ".npz archive"), zipfile.ZipFile(request.path) as archive:
        members = [info for info in archive.infolist() if info.filename.endswith(NPY)]
        named = {i.filename.removesuffix(NPY): _member(request, archive, i) for i in members}
    return open_named(request, "npz", named)


def open_hdf5(request: Request) -> Source:
    """Open an HDF5 file, whose groups are like a dictionary's. Raises UserError when ``h5py`` is not
    installed, or the file is damaged or has no activations."""
    path = request.path
    try:
        h5py = importlib.import_module("h5py")
    except ImportError:
        raise UserError(
            f"{path}: reading HDF5 takes h5py, which is not installed (pip install h5py); or save the "
            "arrays as .npz or .safetensors"
        ) from None
    with damage_told(path, "HDF5 file"):
        file = h5py.File(path, "r")
    with file:
        found: list[tuple[str, Any]] = []
        with damage_told(path, "HDF5 file"):
            file.visititems(lambda name, item: found.append((name.replace("/", "."), item)))
            sets = [(name, item) for name, item in found if isinstance(item, h5py.Dataset)]
            named = {name: _data_set(path, request, item) for name, item in sets}
        return open_named(request, "hdf5", named)


def _member(request: Request, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Any:
    """An array of the archive: ``Stored`` when it could be activations, else its values."""
    shape, fortran, dtype, header = _header(request.path, archive, info)
    size = math.prod(shape) * dtype.itemsize
    if min(shape, default=0) < 0 or size != info.file_size - header:
        raise ValueError(
            f"{info.filename} claims {list(shape)} values of {dtype}, {size:,} bytes, and has "
            f"{info.file_size - header:,}"
        )
    if not _may_be_activations(shape, dtype):
        _refuse_large(request.path, info.filename, size)
        with archive.open(info) as file:
            return np.lib.format.read_array(file, allow_pickle=False)

    def read() -> Tensor:
        order = shape[::-1] if fortran else shape
        if info.compress_type == zipfile.ZIP_STORED and dtype.isnative:
            offset = _offset(request.path, info) + header
            with damage_told(request.path, ".npz archive"):
                flat = mapped_tensor(np.memmap(request.path, dtype, "r", offset, order))
        else:
            with damage_told(request.path, ".npz archive"):
                flat = _inflated(request, info, header, dtype, order)
        return flat.permute(*reversed(range(len(order)))) if fortran else flat

    return Stored(shape, _torch_dtype(dtype), read)


def _header(
    path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo
) -> tuple[tuple[int, ...], bool, np.dtype[Any], int]:
    """A member's shape, whether it is in Fortran order, its dtype, and the bytes before its values."""
    with archive.open(info) as file:
        version = np.lib.format.read_magic(file)
        read = (
            np.lib.format.read_array_header_1_0
            if version == (1, 0)
            else (np.lib.format.read_array_header_2_0)
        )
        shape, fortran, dtype = read(file)
        header = file.tell()
    if dtype.hasobject:
        raise UserError(
            f"{path}: {info.filename} holds Python objects, and pickled code is never run; save arrays "
            "of numbers or text"
        )
    return shape, fortran, dtype, header


def _offset(path: Path, info: zipfile.ZipInfo) -> int:
    """Where a member's bytes start in the archive."""
    with path.open("rb") as file:
        file.seek(info.header_offset)
        local = file.read(LOCAL_HEADER)
    name, extra = int.from_bytes(local[26:28], "little"), int.from_bytes(local[28:30], "little")
    return info.header_offset + LOCAL_HEADER + name + extra


def _inflated(
    request: Request,
    info: zipfile.ZipInfo,
    header: int,
    dtype: np.dtype[Any],
    shape: tuple[int, ...],
) -> Tensor:
    """A member unpacked to a temporary file. Raises UserError when the disk is too small."""
    refuse_full_disk(request.scratch, info.file_size, "unpacking the values")
    scratch, native = Scratch(request.scratch), dtype.newbyteorder("=")
    with zipfile.ZipFile(request.path) as archive, archive.open(info) as file:
        file.read(header)
        for piece in _pieces(file, dtype.itemsize):
            scratch.write(np.frombuffer(piece, dtype).astype(native, copy=False))
    return scratch.rows(_torch_dtype(native), shape[1:])


def _pieces(file: Any, item: int) -> Iterator[bytes]:
    while piece := file.read(PIECE_BYTES // item * item):
        yield piece


def _refuse_large(path: Path, name: str, size: int) -> None:
    """Raise UserError when an array that is read into memory is too large, as a packed file can claim."""
    if size > MOST_BYTES:
        raise UserError(
            f"{path}: {name} takes {size:,} bytes unpacked; expected at most {MOST_BYTES:,} beside the "
            "activations; leave it out of the file"
        )


def _data_set(path: Path, request: Request, data: Any) -> Any:
    """A data set of HDF5: ``Stored`` when it could be activations, else its values."""
    if data.external or data.is_virtual:
        raise UserError(
            f"{path}: {data.name} has its values in other files; save it with its values in this one"
        )
    if data.dtype.kind == "O":  # text of any length; other objects stay undescribed
        is_text = importlib.import_module("h5py").check_string_dtype(data.dtype) is not None
        if is_text and data.shape:
            _refuse_large(path, data.name, math.prod(data.shape) * POINTER)
            return data.asstr()[()].reshape(-1).tolist()
        return Other(f"{list(data.shape or ())} {'text' if is_text else 'values of any length'}")
    if data.shape is not None and not _may_be_activations(data.shape, data.dtype):
        _refuse_large(path, data.name, math.prod(data.shape) * data.dtype.itemsize)
    if data.shape is None or not _may_be_activations(data.shape, data.dtype):
        return data[()] if data.shape is not None else Other("empty")

    def read() -> Tensor:
        offset = data.id.get_offset()  # None where it is in chunks or compressed
        if offset is None or not data.dtype.isnative or data.file.userblock_size:
            with damage_told(path, "HDF5 file"):
                return unpacked(data, request.scratch)
        return mapped_tensor(np.memmap(path, data.dtype, "r", offset, data.shape))

    return Stored(tuple(data.shape), _torch_dtype(data.dtype), read)


def _may_be_activations(shape: tuple[int, ...], dtype: np.dtype[Any]) -> bool:
    return dtype.kind == "f" and dtype.itemsize in (2, 4, 8) and len(shape) > 1


def _torch_dtype(dtype: np.dtype[Any]) -> torch.dtype:
    return torch.from_numpy(np.zeros(0, dtype.newbyteorder("="))).dtype
