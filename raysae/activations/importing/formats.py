"""Choosing the reader of a file by its content and its suffix, and of a folder by its files."""

import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from raysae.activations.importing.archives import open_hdf5, open_npz
from raysae.activations.importing.arrays import (
    npy_files,
    open_npy,
    open_npy_folder,
    open_raw,
    read_ids,
)
from raysae.activations.importing.columns import make_column, refuse_group_within
from raysae.activations.importing.names import ITEM
from raysae.activations.importing.parquet import SUFFIXES as PARQUET
from raysae.activations.importing.parquet import open_parquet, parquet_files
from raysae.activations.importing.request import Request
from raysae.activations.importing.saelens import is_dataset_folder, open_saelens
from raysae.activations.importing.same_texts import with_ids_of_tokens
from raysae.activations.importing.source import Source
from raysae.activations.importing.tensors import open_pt, open_safetensors
from raysae.activations.manifest import MANIFEST_FILE
from raysae.errors import UserError
from raysae.storage.untrusted import regular_file, usable_path

Reader = Callable[[Request], Source]

BLOCK = 512
RAW = (".bin", ".dat", ".mmap", ".raw")
READERS: dict[str, Reader] = {
    **dict.fromkeys((".pt", ".pth", ".th", ".ckpt"), open_pt),
    ".npy": open_npy,
    ".npz": open_npz,
    ".safetensors": open_safetensors,
    **dict.fromkeys(PARQUET, open_parquet),
    **dict.fromkeys((".h5", ".hdf5", ".hdf", ".he5"), open_hdf5),
    **dict.fromkeys(RAW, open_raw),
}
"""Readers by suffix. Add the reader of a new format here."""
CONTENTS: dict[bytes, Reader] = {
    b"\x93NUMPY": open_npy,
    b"PAR1": open_parquet,
    b"\x89HDF\r\n\x1a\n": open_hdf5,
    b"\x80\x02\x8a\nl\xfc\x9cF\xf9": open_pt,  # torch before 1.6
}
"""Readers by a file's first bytes, which count more than its suffix."""
_TEXT = "numbers as text; save the array with numpy.save or as Parquet, and import that"
_PICKLE = (
    "a pickle, whose code is never run; save tensors with torch.save, or arrays with numpy.save"
)
OTHERS = {
    **dict.fromkeys((".csv", ".tsv", ".txt", ".json", ".jsonl", ".ndjson"), _TEXT),
    ".index.json": "the index of a file in several parts; import each part, with its --layer",
    **dict.fromkeys((".pkl", ".pickle", ".joblib"), _PICKLE),
    ".arrow": "one Arrow file of a data set; import the folder that save_to_disk wrote",
    ".mat": "a file of MATLAB; save the array with numpy.save or in HDF5",
}
"""What to do about files that are known but not read."""
PACKED = {
    b"\x1f\x8b\x08": "gzip",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"7z\xbc\xaf": "7z",
}


def open_source(request: Request) -> Source:
    """Open the file's activations.

    Raises UserError when the file is missing, damaged, of an unknown format, or holds no activations, or
    when an option does not fit its format.
    """
    if not usable_path(request.path).exists():
        raise UserError(f"{request.path}: no such file or folder")
    source = _reader(request)(request)
    _refuse_options(source, request)
    return _with_sequences(source, request)


def _refuse_options(source: Source, request: Request) -> None:
    options = request.options
    by_axes = any(said.startswith("dimensions ") for said in source.said)
    if options.axes is not None and not by_axes:
        raise UserError(
            f"{source.path}: --axes {options.axes}: it names the dimensions of one array, and this is "
            f"{source.format} of {list(source.shape)}; leave it out"
        )
    if options.keys.get("sequence") == ITEM and not source.items:
        raise UserError(
            f"{source.path}: --key sequence={ITEM}: it is neither a list of tensors nor a folder of "
            "files; leave it out"
        )
    if options.pad_token is not None and source.column("token_id") is None:
        raise UserError(
            f"{source.path}: --pad-token {options.pad_token}: the file has no token ids; give a mask "
            "with --key mask=NAME, or name the ids with --key token_id=NAME"
        )


def _with_sequences(source: Source, request: Request) -> Source:
    """The source with the ids of ``--sequences``, which count more than those in the file."""
    path = request.options.sequences
    if path is None:
        return source
    ids = make_column("sequence", path.name, read_ids(path), source)
    source = source.with_column("sequence", ids)
    if "group" not in request.options.keys:
        source = replace(
            source, columns={k: v for k, v in (source.columns or {}).items() if k != "group"}
        )
    refuse_group_within(source)
    return with_ids_of_tokens(source, replace_ids=False)


def _reader(request: Request) -> Reader:
    path = request.path
    if path.is_dir():
        return _folder_reader(request)
    suffix = path.suffix.lower()
    if suffix in OTHERS:
        index = path.name.lower().endswith(".index.json")
        raise UserError(f"{path}: {OTHERS['.index.json' if index else suffix]}")
    with regular_file(path).open("rb") as file:
        start = file.read(BLOCK)
    found = next((reader for magic, reader in CONTENTS.items() if start.startswith(magic)), None)
    if found is not None:
        return found
    size = int.from_bytes(start[:8], "little")
    if start[8:10] == b'{"' and size < path.stat().st_size:
        return open_safetensors
    if start.startswith(b"PK\x03\x04"):
        return _zip_reader(path, suffix)
    _refuse_packed(path, start)
    if suffix in READERS:
        return READERS[suffix]
    raise UserError(
        f"{path}: unknown suffix {path.suffix!r}; known are {', '.join(READERS)}, a folder of Parquet "
        "or .npy files, and a folder of SAELens' cached activations"
    )


def _zip_reader(path: Path, suffix: str) -> Reader:
    """The reader of a zip archive: torch and numpy write such files."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError):  # damaged: its reader says so
        return READERS.get(suffix, open_pt)
    if any(name.endswith("data.pkl") for name in names):
        return open_pt
    if names and all(name.endswith(".npy") for name in names):
        return open_npz
    raise UserError(
        f"{path}: a .zip archive of {', '.join(names[:3])}{' ...' * (len(names) > 3)}; unpack it and "
        "import what is in it"
    )


def _refuse_packed(path: Path, start: bytes) -> None:
    packed = next((name for magic, name in PACKED.items() if start.startswith(magic)), None)
    if start[257:262] == b"ustar":
        packed = "tar"
    if packed is not None:
        raise UserError(f"{path}: a {packed} archive; unpack it and import what is in it")


def _folder_reader(request: Request) -> Reader:
    path = request.path
    if (path / MANIFEST_FILE).exists():
        raise UserError(f"{path}: is an activation store already; use it without an import")
    if is_dataset_folder(path):
        return open_saelens
    arrays, tables = npy_files(path), parquet_files(path)
    if arrays and tables:
        raise UserError(
            f"{path}: holds Parquet files and .npy files ({tables[0].name}, {arrays[0].name}); move one "
            "kind into a folder of its own"
        )
    if arrays or tables:
        return open_npy_folder if arrays else open_parquet
    known = sorted(f.name for f in path.iterdir() if f.suffix.lower() in READERS)
    raise UserError(
        f"{path}: holds neither Parquet files ({', '.join(PARQUET)}; not in subfolders), .npy files, "
        "nor a data set of SAELens' cached activations (state.json)"
        + (f"; import its files one by one, such as {known[0]}" if known else "")
    )
