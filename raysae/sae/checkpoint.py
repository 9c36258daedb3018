"""An SAE on disk: a folder with ``cfg.json`` and ``sae.safetensors``. Never a pickle."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from raysae.errors import UserError
from raysae.redaction import redacted_values
from raysae.sae.base import SAE
from raysae.sae.config import sae_config
from raysae.sae.jumprelu import JumpReLUSAE
from raysae.sae.variants import build_sae
from raysae.storage.files import read_json, refuse_other_content, replacing_folder, write_json
from raysae.storage.tensors import tensor_problem
from raysae.storage.untrusted import usable_path

SCHEMA_VERSION = 2
"""Version 1 had TopK only; files of that version are readable, too."""
CONFIG_FILE, WEIGHTS_FILE, METRICS_FILE = "cfg.json", "sae.safetensors", "metrics.json"
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
"""The dtypes of weights that are read; they are used in float32."""
KINDS = {
    torch.int64: "I64", torch.float64: "F64", torch.float32: "F32", torch.int32: "I32",
    torch.bfloat16: "BF16", torch.float16: "F16", torch.int8: "I8", torch.uint8: "U8",
    torch.bool: "BOOL",
}  # fmt: skip
"""The names of dtypes in a safetensors file, in the order in which its tensors lie."""
WRITTEN_AT_ONCE, LEAST_ROWS = 2**20, 16
"""Bytes of a tensor that are copied at a time when it is written, and rows: of a tensor that is stored
column by column, 16 floats are read in a piece anyway."""
UNREADABLE = (
    SafetensorError, OSError, ValueError, LookupError, AttributeError, TypeError, RuntimeError,
    MemoryError,
)  # fmt: skip
"""What a damaged file of weights can raise."""
BESIDE_CONFIG = ("format", "schema_version", "d_in", "metadata")
"""What ``cfg.json`` holds besides the SAE's config."""


def save_sae(
    sae: SAE, folder: str | Path, metadata: Mapping[str, Any] | None = None, **files: Any
) -> None:
    """Write ``sae`` as ``folder/cfg.json`` and ``folder/sae.safetensors``, both or neither.

    ``metadata`` (JSON values; by default those of the SAE) is written into ``cfg.json``, with its secrets
    hidden; each of
    ``files`` becomes ``NAME.json`` in the same folder. An SAE that ``folder`` holds already is
    replaced. Raises UserError when it holds something else, OSError when it cannot be written.
    """
    refuse_other_content(Path(folder), CONFIG_FILE, "SAE")
    with replacing_folder(Path(folder)) as temporary:
        write_tensors(temporary / WEIGHTS_FILE, sae.state_dict())
        write_json(
            temporary / CONFIG_FILE,
            {
                "format": "raysae",
                "schema_version": SCHEMA_VERSION,
                "d_in": sae.d_in,
                **asdict(sae.config),
                "metadata": redacted_values(sae.metadata if metadata is None else metadata),
            },
        )
        for name, content in files.items():
            write_json(temporary / f"{name}.json", content)


def read_sae(folder: Path) -> SAE:
    """The SAE that ``save_sae`` wrote.

    Raises UserError, naming the file and the key, when something is missing, has a wrong shape or
    is of a newer schema.
    """
    path, weights = folder / CONFIG_FILE, folder / WEIGHTS_FILE
    config, d_in, metadata = _read_config(path)
    sae = made_sae(path, config, d_in, weights, read_tensors(weights))
    sae.metadata = metadata
    return sae


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a safetensors file. Raises OSError when it cannot be written.

    The bytes are those of ``safetensors.torch.save_file``, which would need a copy of each tensor that
    is on a GPU or stored column by column, of all of them at once.
    """
    kinds = list(KINDS)
    order = sorted(tensors, key=lambda name: (kinds.index(tensors[name].dtype), name))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in order:
        start, end = end, end + tensors[name].nbytes
        header[name] = {
            "dtype": KINDS[tensors[name].dtype],
            "shape": list(tensors[name].shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in order:
            _write_values(file, tensors[name].detach())


def _write_values(file: BinaryIO, tensor: Tensor) -> None:
    """Write a tensor's values row by row, some rows at a time."""
    rows = tensor.reshape(1) if not tensor.dim() else tensor
    count = max(WRITTEN_AT_ONCE * len(rows) // max(rows.nbytes, 1), LEAST_ROWS)
    for part in rows.split(count):
        file.write(part.contiguous().cpu().reshape(-1).view(torch.uint8).numpy().data)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file. Raises UserError when it is missing or damaged."""
    if not usable_path(path).is_file():
        raise UserError(f"{path}: not found; the folder is not complete")
    try:
        return load_file(path)
    except UNREADABLE as error:
        raise UserError(f"{path}: not a readable safetensors file ({error})") from None


def load_tensors(sae: SAE, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Load ``tensors``, read from ``path``, into ``sae``, in float32.

    Raises UserError, naming each tensor that is missing, unknown or of a wrong shape, or the first that
    holds other values than finite floating point numbers.
    """
    expected = {name: tuple(t.shape) for name, t in sae.state_dict().items()}
    found = {name: tuple(t.shape) for name, t in tensors.items()}
    wrong = [
        f"{name} is {_shape(found.get(name))}, expected {_shape(expected.get(name))}"
        for name in sorted({**expected, **found})
        if found.get(name) != expected.get(name)
    ]
    if wrong:
        raise UserError(
            f"{path}: the tensors do not match {CONFIG_FILE} ({sae.config.variant}, d_in {sae.d_in}, "
            f"d_sae {sae.config.d_sae}): {'; '.join(wrong)}"
        )
    for name, tensor in tensors.items():
        refuse_unusable(path, name, tensor)
    sae.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})


def refuse_unusable(path: Path, name: str, tensor: Tensor) -> None:
    """Raise UserError unless the weights ``tensor`` are dense, floating point, and finite in float32."""
    if problem := tensor_problem(tensor):
        raise UserError(f"{path}: {name} is {problem}; expected plain weights")
    if tensor.dtype not in FLOATS:
        raise UserError(
            f"{path}: {name} holds {_dtype(tensor.dtype)} values; expected "
            f"{', '.join(map(_dtype, FLOATS))}; save the SAE again"
        )
    bad = int((~tensor.float().isfinite()).sum())
    if bad:
        raise UserError(
            f"{path}: {bad:,} of {tensor.numel():,} values of {name} are NaN, infinite or too large for "
            "float32; expected finite weights; its training diverged, or the file was damaged"
        )


def _dtype(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def require(path: Path, settings: Mapping[str, Any], *names: str) -> list[Any]:
    """The values of ``names`` in ``settings``. Raises UserError naming those that are missing."""
    missing = [name for name in names if settings.get(name) is None]
    if missing:
        raise UserError(f"{path}: lacks {', '.join(missing)}")
    return [settings[name] for name in names]


def whole_numbers(path: Path, settings: Mapping[str, Any], *names: str) -> list[int]:
    """The values of ``names``, whole numbers from 1 on. Raises UserError naming one that is not."""
    values = require(path, settings, *names)
    for name, value in zip(names, values, strict=True):
        if type(value) is not int or value < 1:  # not isinstance, which accepts true and false
            raise UserError(f"{path}: {name} is {value!r}; expected a whole number of at least 1")
    return values


def made_sae(
    path: Path, config: Mapping[str, Any], d_in: int, weights: Path, tensors: Mapping[str, Tensor]
) -> SAE:
    """The SAE with ``config``, read from the file ``path``, and ``tensors``, read from ``weights``.

    Raises UserError when ``config`` is not valid or the tensors do not match it.
    """
    (W_dec_FD,) = require(weights, tensors, "W_dec")
    if problem := tensor_problem(W_dec_FD):
        raise UserError(f"{weights}: W_dec is {problem}; expected plain weights")
    if W_dec_FD.shape != (config["d_sae"], d_in):  # checked before memory of that size is allocated
        raise UserError(
            f"{weights}: W_dec is {list(W_dec_FD.shape)}, [d_sae, d_in]; {path.name} says d_sae "
            f"{config['d_sae']}, d_in {d_in}"
        )
    try:
        sae = build_sae(sae_config(config), d_in)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{path}: {error}") from None
    load_tensors(sae, tensors, weights)
    if isinstance(sae, JumpReLUSAE):  # features are never negative
        sae.threshold.data.clamp_(min=0)
    return sae


def _shape(shape: tuple[int, ...] | None) -> str:
    return "absent" if shape is None else str(list(shape))


def _read_config(path: Path) -> tuple[dict[str, Any], int, dict[str, Any]]:
    """The SAE's settings, its d_in and its metadata."""
    if not usable_path(path).is_file():
        raise UserError(f"{path}: not found; the folder is not complete")
    raw = read_json(path)
    if not isinstance(raw, dict) or raw.get("format") != "raysae":
        raise UserError(f"{path}: not a raysae SAE (its 'format' is not 'raysae')")
    version = raw.get("schema_version")
    if type(version) is not int or not 1 <= version <= SCHEMA_VERSION:
        raise UserError(
            f"{path}: schema_version {version!r}; this raysae reads 1 to {SCHEMA_VERSION}; "
            "upgrade raysae"
        )
    require(path, raw, "variant")
    d_in, _ = whole_numbers(path, raw, "d_in", "d_sae")
    metadata = raw.get("metadata") or {}
    if not isinstance(metadata, dict):
        raise UserError(f"{path}: metadata is {metadata!r}; expected keys and values")
    return {key: value for key, value in raw.items() if key not in BESIDE_CONFIG}, d_in, metadata
