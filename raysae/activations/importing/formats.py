"""Choosing the reader of a file by its suffix, and of a folder by its content."""

from collections.abc import Callable
from dataclasses import replace

from raysae.activations.importing.arrays import open_npy, open_raw, read_ids
from raysae.activations.importing.parquet import SUFFIXES as PARQUET
from raysae.activations.importing.parquet import open_parquet, parquet_files
from raysae.activations.importing.request import Request
from raysae.activations.importing.saelens import is_dataset_folder, open_saelens
from raysae.activations.importing.source import Source, make_column
from raysae.activations.importing.tensors import open_pt, open_safetensors
from raysae.activations.manifest import MANIFEST_FILE
from raysae.errors import UserError

Reader = Callable[[Request], Source]

READERS: dict[str, Reader] = {
    **dict.fromkeys((".pt", ".pth"), open_pt),
    ".npy": open_npy,
    ".safetensors": open_safetensors,
    **dict.fromkeys(PARQUET, open_parquet),
    **dict.fromkeys((".bin", ".dat", ".mmap", ".raw"), open_raw),
}
"""Readers by suffix. Add the reader of a new format here."""


def open_source(request: Request) -> Source:
    """Open the file's activations.

    Raises UserError when the file is missing, damaged, of an unknown format, or holds no activations.
    """
    if not request.path.exists():
        raise UserError(f"{request.path}: no such file or folder")
    source = _reader(request)(request)
    path = request.options.sequences
    if path is None:
        return source
    ids = make_column("sequence", str(path), read_ids(path), source)
    return source.with_column("sequence", replace(ids, name=path.name))


def _reader(request: Request) -> Reader:
    path = request.path
    if path.is_dir():
        return _folder_reader(request)
    if path.suffix.lower() in READERS:
        return READERS[path.suffix.lower()]
    raise UserError(
        f"{path}: unknown suffix {path.suffix!r}; known are {', '.join(READERS)}, a folder of Parquet "
        "files, and a folder of SAELens' cached activations"
    )


def _folder_reader(request: Request) -> Reader:
    path = request.path
    if (path / MANIFEST_FILE).exists():
        raise UserError(f"{path}: is an activation store already; use it without an import")
    if is_dataset_folder(path):
        return open_saelens
    if parquet_files(path):
        return open_parquet
    raise UserError(
        f"{path}: holds neither Parquet files ({', '.join(PARQUET)}; not in subfolders) "
        "nor a data set of SAELens' cached activations (state.json)"
    )
