"""Helpers of all formats: checks of settings, and conversion of biases and norms.

Shapes: D d_in, F d_sae.
"""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from raysae.errors import UserError
from raysae.sae.base import SAE
from raysae.storage.files import read_json
from raysae.storage.untrusted import usable_path


def read_settings(path: Path) -> dict[str, Any]:
    """The JSON object in file ``path``. Raises UserError when it is missing or no object."""
    if not usable_path(path).is_file():
        raise UserError(f"{path}: not found; the folder is not complete")
    return keys_and_values(f"{path}", read_json(path))


def keys_and_values(where: str, value: Any) -> dict[str, Any]:
    """``value``, which must be a JSON object. Raises UserError naming ``where`` when it is not."""
    if not isinstance(value, dict):
        raise UserError(f"{where}: expected keys and values, found a {type(value).__name__}")
    return value


def yes_or_no(path: Path, settings: Mapping[str, Any], name: str, default: bool) -> bool:
    """The value of ``name``. Raises UserError when it is neither true nor false."""
    value = settings.get(name, default)
    if not isinstance(value, bool):
        raise UserError(f"{path}: {name} is {value!r}; expected true or false")
    return value


def refuse_unknown(
    where: str,
    settings: Mapping[str, Any],
    harmless: Collection[str],
    supported: Mapping[str, Sequence[Any]],
    advice: Mapping[str, str] | None = None,
) -> None:
    """Raise UserError, naming ``where`` and the key, for a setting that may change what the SAE
    computes in a way that raysae would not follow.

    ``harmless`` are keys that only concern training, names or places. ``supported`` gives the values
    that raysae can follow for keys that matter; true and 1 are different values. Any other key is
    refused unless it is off (null, false, or empty). ``advice`` says for some keys what to do.
    """
    for key, value in settings.items():
        if key in harmless:
            continue
        known = supported.get(key)
        if _off(value) if known is None else any(_same(value, wanted) for wanted in known):
            continue
        found = f"{where}: {key} is {value!r}"
        if known is not None:
            wanted = " or ".join(repr(one) for one in known)
            mend = (advice or {}).get(key, "load it with the library that made it")
            raise UserError(f"{found}; raysae reads only {wanted}; {mend}")
        raise UserError(
            f"{found}, a setting that raysae does not know and that may change what the SAE "
            "computes; if it does not (it is about training or names only), remove it from "
            "the file; else load the SAE with the library that made it"
        )


def _off(value: Any) -> bool:
    return value is None or value is False or value in ("", [], {})


def _same(value: Any, wanted: Any) -> bool:
    """Equality that tells true from 1, also inside lists."""
    if isinstance(value, list) and isinstance(wanted, list):
        pairs = zip(value, wanted, strict=False)
        return len(value) == len(wanted) and all(_same(*pair) for pair in pairs)
    return type(value) is type(wanted) and value == wanted


def part(metadata: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """The object under ``name`` in ``metadata``; empty when there is none or it is no object."""
    value = metadata.get(name)
    return value if isinstance(value, Mapping) else {}


def transposed(tensor: Tensor) -> Tensor:
    """The transposed matrix; another tensor unchanged, which ``load_tensors`` then refuses."""
    return tensor.T if tensor.ndim == 2 else tensor


@torch.no_grad()
def fold_decoder_norm(sae: SAE) -> None:
    """Scale each latent so that its decoder row has unit norm, in place; features are scaled by the
    norm.

    Only for variants without thresholds and without separate magnitudes.
    """
    norm_F = sae.W_dec.norm(dim=1).clamp_min(torch.finfo(torch.float32).tiny)
    sae.W_enc.mul_(norm_F)
    sae.b_enc.mul_(norm_F)
    sae.W_dec.div_(norm_F[:, None])


def bias_without_b_dec(b_enc_F: Tensor, W_enc_DF: Tensor, b_dec_D: Tensor) -> Tensor:
    """The encoder bias ``[d_sae]`` for an SAE that reads x, from that for reading x - b_dec."""
    return (b_enc_F.double() - b_dec_D.double() @ W_enc_DF.double()).to(b_enc_F.dtype)


def bias_with_b_dec(b_enc_F: Tensor, W_enc_DF: Tensor, b_dec_D: Tensor) -> Tensor:
    """The encoder bias ``[d_sae]`` for an SAE that reads x - b_dec, from that for reading x."""
    return bias_without_b_dec(b_enc_F, W_enc_DF, -b_dec_D)
