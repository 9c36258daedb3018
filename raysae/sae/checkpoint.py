"""An SAE on disk: a folder with ``cfg.json`` and ``sae.safetensors``. Never a pickle."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from raysae.errors import UserError
from raysae.files import read_json, refuse_other_content, replacing_folder, write_json
from raysae.sae.base import SAE
from raysae.sae.config import SAEConfig
from raysae.sae.variants import build_sae, sae_config

SCHEMA_VERSION = 2
"""Version 1 held TopK alone; its files are read, too."""
CONFIG_FILE, WEIGHTS_FILE, METRICS_FILE = "cfg.json", "sae.safetensors", "metrics.json"
BESIDE_CONFIG = ("format", "schema_version", "d_in", "metadata")
"""What ``cfg.json`` holds besides the SAE's config."""


def save_sae(
    sae: SAE, folder: str | Path, metadata: Mapping[str, Any] | None = None, **files: Any
) -> None:
    """Write ``sae`` as ``folder/cfg.json`` and ``folder/sae.safetensors``, both or neither.

    ``metadata`` (JSON values; the SAE's own by default) goes into ``cfg.json``; each of ``files``
    becomes ``NAME.json`` in the same folder. An SAE that ``folder`` held before is replaced; anything
    else raises UserError.
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
                "metadata": dict(sae.metadata if metadata is None else metadata),
            },
        )
        for name, content in files.items():
            write_json(temporary / f"{name}.json", content)


def read_sae(folder: Path) -> SAE:
    """The SAE that ``save_sae`` wrote.

    Raises UserError, naming the file and the key, when something is missing, misshaped or of a
    newer schema.
    """
    config, d_in, metadata = _read_config(folder / CONFIG_FILE)
    sae = build_sae(config, d_in)
    load_tensors(sae, read_tensors(folder / WEIGHTS_FILE), folder / WEIGHTS_FILE)
    sae.metadata = metadata
    return sae


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a safetensors file."""
    ready = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    save_file(ready, path, metadata={"format": "pt"})


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file. Raises UserError when it is missing or damaged."""
    if not path.is_file():
        raise UserError(f"{path}: not found; the folder is not complete")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise UserError(f"{path}: not a readable safetensors file ({error})") from None


def load_tensors(sae: SAE, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Put ``tensors``, read from ``path``, into ``sae``, in float32.

    Raises UserError, naming each tensor that is missing, unknown or misshaped.
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
    sae.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})


def _shape(shape: tuple[int, ...] | None) -> str:
    return "absent" if shape is None else str(list(shape))


def _read_config(path: Path) -> tuple[SAEConfig, int, dict[str, Any]]:
    raw = read_json(path)
    if not isinstance(raw, dict) or raw.get("format") != "raysae":
        raise UserError(f"{path}: not a raysae SAE (its 'format' is not 'raysae')")
    version = raw.get("schema_version")
    if not isinstance(version, int) or not 1 <= version <= SCHEMA_VERSION:
        raise UserError(
            f"{path}: schema_version {version!r}; this raysae reads 1 to {SCHEMA_VERSION}; "
            "upgrade raysae"
        )
    missing = sorted({"variant", "d_sae", "d_in"} - raw.keys())
    if missing:
        raise UserError(f"{path}: lacks {', '.join(missing)}")
    settings = {key: value for key, value in raw.items() if key not in BESIDE_CONFIG}
    try:
        config, d_in = sae_config(settings), int(raw["d_in"])
    except (TypeError, ValueError) as error:
        raise UserError(f"{path}: {error}") from None
    if d_in < 1:
        raise UserError(f"{path}: d_in is {d_in}; it must be at least 1")
    return config, d_in, raw.get("metadata") or {}
