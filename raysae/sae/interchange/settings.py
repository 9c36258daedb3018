"""What the readers of all formats share: settings checked, biases folded.

Shapes: D d_in, F d_sae.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from raysae.errors import UserError
from raysae.files import read_json
from raysae.sae.base import SAE
from raysae.sae.checkpoint import load_tensors
from raysae.sae.variants import build_sae, sae_config


def read_settings(path: Path) -> dict[str, Any]:
    """The JSON object in ``path``. Raises UserError when it is missing or something else."""
    if not path.is_file():
        raise UserError(f"{path}: not found; the folder is not complete")
    settings = read_json(path)
    if not isinstance(settings, dict):
        raise UserError(f"{path}: expected keys and values, found a {type(settings).__name__}")
    return settings


def require(path: Path, settings: Mapping[str, Any], *names: str) -> list[Any]:
    """The values of ``names``. Raises UserError naming those that are missing."""
    missing = [name for name in names if settings.get(name) is None]
    if missing:
        raise UserError(f"{path}: lacks {', '.join(missing)}")
    return [settings[name] for name in names]


def made_sae(
    path: Path, config: Mapping[str, Any], d_in: int, tensors: Mapping[str, Tensor]
) -> SAE:
    """An SAE of ``config`` with ``tensors``, which were read from ``path``.

    Raises UserError when they do not fit together.
    """
    try:
        sae = build_sae(sae_config(config), int(d_in))
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{path}: {error}") from None
    load_tensors(sae, tensors, path)
    return sae


def bias_without_b_dec(b_enc_F: Tensor, W_enc_DF: Tensor, b_dec_D: Tensor) -> Tensor:
    """The encoder bias of an SAE that reads x itself, from that of one that reads x - b_dec."""
    return (b_enc_F.double() - b_dec_D.double() @ W_enc_DF.double()).to(b_enc_F.dtype)


def bias_with_b_dec(b_enc_F: Tensor, W_enc_DF: Tensor, b_dec_D: Tensor) -> Tensor:
    """The encoder bias of an SAE that reads x - b_dec, from that of one that reads x itself."""
    return bias_without_b_dec(b_enc_F, W_enc_DF, -b_dec_D)
