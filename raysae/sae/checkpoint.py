"""An SAE on disk: a folder with ``cfg.json`` and ``sae.safetensors``. Never a pickle."""

from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from raysae.errors import UserError
from raysae.files import read_json, replacing_folder, write_json
from raysae.sae.base import SAE
from raysae.sae.config import SAEConfig
from raysae.sae.variants import build_sae

SCHEMA_VERSION = 1
CONFIG_FILE, WEIGHTS_FILE, METRICS_FILE = "cfg.json", "sae.safetensors", "metrics.json"


def save_sae(
    sae: SAE, folder: str | Path, metadata: dict[str, Any] | None = None, **files: Any
) -> None:
    """Write ``sae`` as ``folder/cfg.json`` and ``folder/sae.safetensors``, both or neither.

    ``metadata`` (JSON values) goes into ``cfg.json``; each of ``files`` becomes ``NAME.json`` in
    the same folder. What ``folder`` held before is replaced.
    """
    with replacing_folder(Path(folder)) as temporary:
        tensors = {name: t.detach().cpu().contiguous() for name, t in sae.state_dict().items()}
        save_file(tensors, temporary / WEIGHTS_FILE, metadata={"format": "pt"})
        write_json(
            temporary / CONFIG_FILE,
            {
                "format": "raysae",
                "schema_version": SCHEMA_VERSION,
                "d_in": sae.d_in,
                **asdict(sae.config),
                "metadata": metadata or {},
            },
        )
        for name, content in files.items():
            write_json(temporary / f"{name}.json", content)


def load_sae(folder: str | Path, device: str = "cpu") -> SAE:
    """The SAE that ``save_sae`` wrote, in evaluation mode on ``device``.

    Raises UserError, naming the file and the key, when something is missing, misshaped or of a
    newer schema.
    """
    folder = Path(folder)
    config, d_in = _read_config(folder / CONFIG_FILE)
    sae = build_sae(config, d_in)
    _check_and_load(sae, folder / WEIGHTS_FILE)
    return sae.eval().requires_grad_(False).to(device)


def _read_config(path: Path) -> tuple[SAEConfig, int]:
    if not path.is_file():
        raise UserError(
            f"{path}: not found; an SAE is a folder with {CONFIG_FILE} and {WEIGHTS_FILE}, such as "
            "runs/NAME/sweet_spot"
        )
    raw = read_json(path)
    if not isinstance(raw, dict) or raw.get("format") != "raysae":
        raise UserError(f"{path}: not a raysae SAE (its 'format' is not 'raysae')")
    if raw.get("schema_version") != SCHEMA_VERSION:
        raise UserError(
            f"{path}: schema_version {raw.get('schema_version')!r}; this raysae reads "
            f"{SCHEMA_VERSION}; upgrade raysae"
        )
    known = {field.name for field in fields(SAEConfig)}
    missing = sorted({*known, "d_in"} - raw.keys())
    if missing:
        raise UserError(f"{path}: lacks {', '.join(missing)}")
    try:
        return SAEConfig(**{name: raw[name] for name in known}), int(raw["d_in"])
    except (TypeError, ValueError) as error:
        raise UserError(f"{path}: {error}") from None


def _check_and_load(sae: SAE, path: Path) -> None:
    if not path.is_file():
        raise UserError(f"{path}: not found; the folder is not a complete SAE")
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise UserError(f"{path}: not a readable safetensors file ({error})") from None
    expected = {name: tuple(t.shape) for name, t in sae.state_dict().items()}
    found = {name: tuple(t.shape) for name, t in tensors.items()}
    if found != expected:
        wrong = sorted(set(found.items()) ^ set(expected.items()))
        raise UserError(
            f"{path}: tensors do not match {CONFIG_FILE}; expected {expected}, {wrong=}"
        )
    sae.load_state_dict(tensors)
