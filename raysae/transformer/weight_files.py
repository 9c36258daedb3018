"""What lies in a model's folder: checked before it is loaded, so that a message names the file."""

import json
import math
import struct
from pathlib import Path
from typing import Any

from raysae.errors import UserError

INDEX = "model.safetensors.index.json"
WHOLE = "model.safetensors"
LFS = b"version https://git-lfs"
OTHER_FORMATS = {
    "*.bin": "PyTorch pickles, which raysae never reads; convert them once where you trust them: "
    "AutoModelForCausalLM.from_pretrained(FOLDER).save_pretrained(FOLDER)",
    "*.pt": "PyTorch pickles, which raysae never reads; save the model with save_pretrained",
    "*.pth": "PyTorch pickles, which raysae never reads; save the model with save_pretrained",
    "*.gguf": "GGUF, which is quantised for llama.cpp; name the original model",
    "*.onnx": "ONNX, which has no modules to read activations at; name the original model",
    "*.ckpt": "PyTorch pickles, which raysae never reads; save the model with save_pretrained",
    "*.pkl": "pickles, which raysae never reads; save the model with save_pretrained",
    "*.h5": "TensorFlow weights; save the model with save_pretrained in PyTorch",
    "*.msgpack": "Flax weights; save the model with save_pretrained in PyTorch",
}
"""Formats of weights that are not read, and the way."""
Header = dict[str, dict[str, Any]]
"""What a safetensors file says of each of its tensors."""
WHOLE_NUMBERS = ("I8", "U8", "I16", "U16", "I32", "I64")
EIGHT_BITS = ("F8_E4M3", "F8_E5M2", "F8_E8M0", "F4")
LONGEST_HEADER = 100_000_000
"""The most bytes of a header; safetensors reads no longer ones."""
LEAST_SHARE = 0.5
"""Weights are quantised when integers or 8-bit floats make up this share of their values."""


def check_folder(folder: Path, name: str) -> None:
    """Check a model folder's weights: format, git-lfs pointers, missing shards, lengths, number formats.

    ``name`` stands before each message. Raises UserError that names the file and what to do.
    """
    whole = folder / WHOLE
    files = [whole] if whole.is_file() else _listed(folder, name)
    if not files:
        raise UserError(f"{name}: {_no_weights(folder)}")
    headers = [read_header(file, name) for file in files]
    _refuse_quantised(files, headers, name)


def stored_values(folder: Path) -> int | None:
    """How many numbers a model folder's weights hold; None when they cannot be read."""
    whole = folder / WHOLE
    try:
        files = [whole] if whole.is_file() else _listed(folder, "")
        headers = [read_header(file, "") for file in files]
    except (UserError, OSError):  # told when the weights are loaded
        return None
    return sum(_values(row) for header in headers for row in header.values()) or None


def _values(row: dict[str, Any]) -> int:
    return math.prod(row["shape"])


def read_header(file: Path, name: str) -> Header:
    """The header of a safetensors file. Raises UserError when the file is damaged, with the mend."""
    size = file.stat().st_size
    with open(file, "rb") as stream:
        start = stream.read(len(LFS))
        if start == LFS:
            raise UserError(
                f"{name}: {file} is a git-lfs pointer of {size} bytes and not the weights; fetch them "
                "(git lfs pull) or download the model again"
            )
        stream.seek(0)
        length: int = struct.unpack("<Q", stream.read(8))[0] if size >= 8 else size
        if length > min(size - 8, LONGEST_HEADER):
            raise UserError(
                f"{name}: {file} ({size:,} bytes) is no safetensors file or is cut off; copy or "
                "download it again"
            )
        try:
            header = json.loads(stream.read(length))
            header.pop("__metadata__", None)
            ends = [row["data_offsets"][1] for row in header.values()]
            assert all(isinstance(_values(row), int) and row["dtype"] for row in header.values())
            assert all(isinstance(end, int) for end in ends)
        except (ValueError, LookupError, TypeError, AttributeError, AssertionError, RecursionError):
            raise UserError(
                f"{name}: the header of {file} cannot be read; copy or download it again"
            ) from None
    wanted = 8 + length + max(ends, default=0)
    if size != wanted:
        raise UserError(
            f"{name}: {file} has {size:,} bytes; by its header it should have {wanted:,}: it was cut off "
            "or altered; copy or download it again"
        )
    return header


def _listed(folder: Path, name: str) -> list[Path]:
    """The shards that the index lists. Raises UserError when one is not there."""
    if not (folder / INDEX).is_file():
        return []
    try:
        listed = sorted(set(json.loads((folder / INDEX).read_text())["weight_map"].values()))
        assert all(isinstance(file, str) for file in listed)
    except (ValueError, LookupError, TypeError, AttributeError, AssertionError, RecursionError):
        raise UserError(f"{name}: {folder / INDEX} cannot be read; download it again") from None
    strange = [file for file in listed if Path(file).name != file]
    if strange:
        raise UserError(
            f"{name}: {folder / INDEX} lists {strange[0]!r}, which is no plain file name"
        )
    missing = [file for file in listed if not (folder / file).is_file()]
    if missing:
        raise UserError(
            f"{name}: {len(missing)} of the {len(listed)} files that {INDEX} lists are not there "
            f"({', '.join(missing[:3])}); download them"
        )
    return [folder / file for file in listed]


def _no_weights(folder: Path) -> str:
    for pattern, what in () if any(folder.glob("*.safetensors")) else OTHER_FORMATS.items():
        found = sorted(file.name for file in folder.glob(pattern))
        found = [file for file in found if file != "training_args.bin"]
        if found:
            return f"it holds no safetensors files; {found[0]} is {what}"
    others = sorted(file.name for file in folder.glob("*.safetensors"))
    return (
        f"the folder holds no {WHOLE} and no {INDEX}"
        + (f", only {', '.join(others[:3])}" if others else "")
        + "; save the model with save_pretrained"
    )


def _refuse_quantised(files: list[Path], headers: list[Header], name: str) -> None:
    counts: dict[str, int] = {}
    for header in headers:
        for row in header.values():
            counts[row["dtype"]] = counts.get(row["dtype"], 0) + _values(row)
    packed = {d: n for d, n in counts.items() if d in (*WHOLE_NUMBERS, *EIGHT_BITS)}
    if packed and sum(packed.values()) > LEAST_SHARE * sum(counts.values()):
        raise UserError(
            f"{name}: its weights in {files[0].name} are quantised ({', '.join(sorted(packed))}), and "
            "raysae reads weights of 16 bits or more; name the original model, or save it dequantised"
        )
