"""SAELens 6: ``cfg.json`` and ``sae_weights.safetensors``, for ``SAE.load_from_disk``.

BatchTopK and Matryoshka leave as JumpReLU with one threshold for all latents, as SAELens itself saves
them. Decoder rows have unit norm and the input scale is folded in already.
"""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from raysae.errors import UserError
from raysae.files import write_json
from raysae.sae.base import SAE
from raysae.sae.checkpoint import CONFIG_FILE, read_tensors, write_tensors
from raysae.sae.interchange.settings import bias_with_b_dec, made_sae, read_settings, require

WEIGHTS_FILE = "sae_weights.safetensors"
ARCHITECTURES = {
    "topk": "topk",
    "batch_topk": "jumprelu",
    "matryoshka": "jumprelu",
    "jumprelu": "jumprelu",
    "gated": "gated",
    "relu_l1": "standard",
}
VARIANTS = {"topk": "topk", "jumprelu": "jumprelu", "gated": "gated", "standard": "relu_l1"}
SAE_LENS_VERSION = "6.0.0"
"""The version whose format this is; without one SAELens runs its converter for older files."""


def write(sae: SAE, folder: Path) -> None:
    """Write ``sae`` so that SAELens 6 loads it with the same features and reconstructions."""
    architecture = ARCHITECTURES[sae.config.variant]
    tensors = {name: tensor.detach() for name, tensor in sae.state_dict().items()}
    if architecture == "jumprelu":
        tensors["threshold"] = tensors["threshold"].clamp_min(0).expand(sae.config.d_sae)
    if architecture == "gated":
        tensors["b_gate"] = tensors.pop("b_enc")
    write_tensors(folder / WEIGHTS_FILE, tensors)
    config = {
        "architecture": architecture,
        "d_in": sae.d_in,
        "d_sae": sae.config.d_sae,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": _metadata(sae),
    }
    if architecture == "topk":
        config |= {"k": asdict(sae.config)["k"], "rescale_acts_by_decoder_norm": False}
    write_json(folder / CONFIG_FILE, config)


def read(folder: Path) -> SAE:
    """The SAE that SAELens 6 saved with ``save_model`` or ``save_inference_model``.

    Raises UserError when its architecture or its normalisation has no equal here.
    """
    path = folder / CONFIG_FILE
    settings = read_settings(path)
    architecture, d_in, d_sae = require(path, settings, "architecture", "d_in", "d_sae")
    _check(path, settings)
    tensors = read_tensors(folder / WEIGHTS_FILE)
    config = {"variant": VARIANTS[architecture], "d_sae": d_sae}
    if architecture == "topk":
        (config["k"],) = require(path, settings, "k")
    if architecture == "gated" and "b_gate" in tensors:
        tensors["b_enc"] = tensors.pop("b_gate")
    sae = made_sae(folder / WEIGHTS_FILE, config, d_in, tensors)
    if settings.get("rescale_acts_by_decoder_norm"):
        _fold_decoder_norm(sae)
    if not settings.get("apply_b_dec_to_input", True):
        _read_x_minus_b_dec(sae)
    sae.metadata = {"imported_from": "saelens", **(settings.get("metadata") or {})}
    return sae


def _check(path: Path, settings: Mapping[str, Any]) -> None:
    architecture = settings["architecture"]
    if architecture not in VARIANTS:
        hint = (
            "; save it for inference (save_inference_model), which makes a jumprelu of it"
            if "batchtopk" in str(architecture)
            else ""
        )
        raise UserError(
            f"{path}: architecture is {architecture!r}, which raysae does not have; it reads "
            f"{', '.join(VARIANTS)}{hint}"
        )
    version = str((settings.get("metadata") or {}).get("sae_lens_version") or "none")
    if not version.split(".")[0].isdigit() or int(version.split(".")[0]) < 6:
        raise UserError(
            f"{path}: metadata.sae_lens_version is {version}; raysae reads the format of SAELens 6: "
            "load it there with SAE.load_from_disk and save it again"
        )
    normalisation = settings.get("normalize_activations", "none")
    if normalisation != "none":
        raise UserError(
            f"{path}: normalize_activations is {normalisation!r}, which is not in the weights; fold "
            "it in with SAELens first (fold_activation_norm_scaling_factor)"
        )


@torch.no_grad()
def _fold_decoder_norm(sae: SAE) -> None:
    """Scale each latent so that its decoder row has unit norm; the selection saw it so already."""
    norm_F = sae.W_dec.norm(dim=1).clamp_min(torch.finfo(torch.float32).tiny)
    sae.W_enc.mul_(norm_F)
    sae.b_enc.mul_(norm_F)
    sae.W_dec.div_(norm_F[:, None])


@torch.no_grad()
def _read_x_minus_b_dec(sae: SAE) -> None:
    if sae.config.variant == "gated":
        r_mag_F: Tensor = sae.get_parameter("r_mag")
        scaled_DF = sae.W_enc * r_mag_F.exp()
        b_mag_F = sae.get_parameter("b_mag")
        b_mag_F.copy_(bias_with_b_dec(b_mag_F, scaled_DF, sae.b_dec))
    sae.b_enc.copy_(bias_with_b_dec(sae.b_enc, sae.W_enc, sae.b_dec))


def _metadata(sae: SAE) -> dict[str, Any]:
    """What SAELens calls the things that raysae knows of the SAE's origin; the rest as it is."""
    own = sae.metadata
    model, dataset = own.get("model") or {}, own.get("dataset") or {}
    named = {
        "model_name": model.get("id"),
        "hook_name": hook_name(own),
        "dataset_path": dataset.get("id"),
        "context_size": own.get("context_length"),
        "raysae": {"variant": sae.config.variant, **own},
    }
    known = {key: value for key, value in named.items() if value is not None}
    return {"sae_lens_version": SAE_LENS_VERSION, **known}


def hook_name(metadata: Mapping[str, Any]) -> str | None:
    """TransformerLens's name of the hookpoint, such as ``blocks.8.hook_resid_post``."""
    layer, hookpoint = metadata.get("layer"), metadata.get("hookpoint")
    return None if layer is None or not hookpoint else f"blocks.{layer}.hook_{hookpoint}"
