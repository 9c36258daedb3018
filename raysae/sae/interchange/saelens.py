"""SAELens 6: ``cfg.json`` and ``sae_weights.safetensors``, for ``SAE.load_from_disk``.

BatchTopK and Matryoshka are written as JumpReLU with one threshold for all latents, as SAELens
itself writes them. Decoder rows have unit norm, and the weights include the input scale.
"""

import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from raysae.errors import UserError
from raysae.redaction import redacted_values
from raysae.sae.base import SAE
from raysae.sae.checkpoint import (
    CONFIG_FILE,
    made_sae,
    read_tensors,
    require,
    whole_numbers,
    write_tensors,
)
from raysae.sae.interchange.settings import (
    bias_with_b_dec,
    fold_decoder_norm,
    keys_and_values,
    part,
    read_settings,
    refuse_unknown,
    yes_or_no,
)
from raysae.storage.files import write_json

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
RUN = (
    *("model_name", "model_class_name", "hook_name", "hook_layer", "hook_eval", "hf_hook_name"),
    *(
        "dataset_path",
        "dataset_trust_remote_code",
        "context_size",
        "prepend_bos",
        "is_dataset_tokenized",
    ),
    *("exclude_special_tokens", "neuronpedia_id", "model_from_pretrained_kwargs", "seed"),
    *("sae_lens_version", "sae_lens_training_version", "training_tokens", "metadata", "raysae"),
)
"""Where the SAE comes from, which SAELens writes into ``metadata``, and earlier versions beside it."""
TRAINING = (
    *("decoder_init_norm", "lr", "l1_coefficient", "lp_norm", "l1_warm_up_steps"),
    *("l0_coefficient", "l0_warm_up_steps", "pre_act_loss_coefficient", "target_l0"),
    *("jumprelu_init_threshold", "jumprelu_bandwidth", "jumprelu_sparsity_loss_mode"),
    *("jumprelu_tanh_scale", "jumprelu_ste_to_input", "use_sparse_activations"),
    *("aux_loss_coefficient", "mse_loss_normalization", "use_ghost_grads"),
)
"""The fields of SAELens's training configs that its encode and decode do not read."""
RUNNER = (
    *("streaming", "use_chat_formatting", "use_cached_activations", "cached_activations_path"),
    *("from_pretrained_path", "n_batches_in_buffer", "store_batch_size_prompts", "model_kwargs"),
    *("disable_concat_sequences", "sequence_separator_token", "activations_mixing_fraction"),
    *("llm_device", "act_store_device", "prefetch_llm_batches", "autocast", "autocast_lm"),
    *("compile_llm", "llm_compilation_mode", "compile_sae", "sae_compilation_mode"),
    *(
        "train_batch_size_tokens",
        "adam_beta1",
        "adam_beta2",
        "lr_scheduler_name",
        "lr_warm_up_steps",
    ),
    *("lr_end", "lr_decay_steps", "n_restart_cycles", "dead_feature_window"),
    *("feature_sampling_window", "dead_feature_threshold", "n_eval_batches"),
    *("eval_batch_size_prompts", "logger", "n_checkpoints", "checkpoint_path", "output_path"),
    *("save_final_checkpoint", "resume_from_checkpoint", "verbose", "n_batches_for_norm_estimate"),
)
"""The fields of its runner's config, which it sometimes writes beside the SAE's."""
HARMLESS = (*RUN, *TRAINING, *RUNNER, "architecture", "d_in", "d_sae", "dtype", "device")
WHERE: dict[str, list[Any]] = {
    "reshape_activations": ["none", None],
    "hook_head_index": [None],
    "hook_head_index_out": [None],
    "hook_name_out": [None],
    "seqpos_slice": [None, [], [None], [None, None], [None, None, None], [0], [0, None]],
}
"""Settings that say which part of the activations the SAE reads or predicts."""
CHANGED: dict[str, list[Any]] = {
    "activation_fn": ["relu", None],
    "activation_fn_str": ["relu", None],
    "activation_fn_kwargs": [{}, None],
    "finetuning_scaling_factor": [False, None],
    "noise_scale": [0, 0.0, None],
}
"""Settings of earlier versions, which changed the features or the reconstruction."""
ADVICE = {
    "normalize_activations": "it is not in the weights; fold it in with SAELens first "
    "(fold_activation_norm_scaling_factor)",
    "reshape_activations": "it reads the heads' outputs joined: if your rows are, set it to 'none'",
    "hook_head_index": "it reads one head's output: if your rows are that, remove the key",
    "seqpos_slice": "it reads only some tokens: if your rows are those, remove the key",
    "hook_name_out": "a transcoder predicts other activations than it reads",
}
SAE_LENS_VERSION = "6.0.0"
"""The version of the written format; without it SAELens runs its converter for older files."""


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

    Raises UserError when raysae has no equivalent of its architecture or of a setting, does not know
    a setting or a tensor, or a file is missing or damaged.
    """
    path, weights = folder / CONFIG_FILE, folder / WEIGHTS_FILE
    settings = read_settings(path)
    (architecture,) = require(path, settings, "architecture")
    metadata = keys_and_values(f"{path}: metadata", settings.get("metadata") or {})
    _check(path, settings, metadata)
    d_in, d_sae = whole_numbers(path, settings, "d_in", "d_sae")
    config = {"variant": VARIANTS[architecture], "d_sae": d_sae}
    if architecture == "topk":
        (config["k"],) = whole_numbers(path, settings, "k")
    tensors = read_tensors(weights)
    factor = tensors.get("scaling_factor")
    if factor is not None and bool((factor == 1).all()):  # SAELens ignores it then, too
        del tensors["scaling_factor"]
    if architecture == "gated":
        (tensors["b_enc"],) = require(weights, tensors, "b_gate")
        del tensors["b_gate"]
    sae = made_sae(path, config, d_in, weights, tensors)
    if architecture == "topk" and yes_or_no(path, settings, "rescale_acts_by_decoder_norm", False):
        fold_decoder_norm(sae)  # SAELens multiplies pre-activations by the norm before it selects
    if not yes_or_no(path, settings, "apply_b_dec_to_input", True):
        _read_x_minus_b_dec(sae)
    sae.metadata = {"imported_from": "saelens", **_origin(metadata)}
    return sae


def read_origin(folder: Path) -> dict[str, Any]:
    """Where the SAE in ``folder`` comes from, and its d_in, without reading its weights: ``layer``,
    ``hookpoint``, ``model``, ``dataset``, ``context_length``; None for what is not known.

    Raises UserError when ``cfg.json`` is missing, damaged, or not SAELens's.
    """
    path = folder / CONFIG_FILE
    settings = read_settings(path)
    require(path, settings, "architecture")
    (d_in,) = whole_numbers(path, settings, "d_in")
    metadata = keys_and_values(f"{path}: metadata", settings.get("metadata") or {})
    return {**redacted_values(_origin(metadata)), "d_in": d_in}


def _check(path: Path, settings: Mapping[str, Any], metadata: Mapping[str, Any]) -> None:
    architecture = settings["architecture"]
    if architecture not in list(VARIANTS):  # a list, as a damaged value may not be hashable
        hint = (
            "; save it for inference (save_inference_model), which makes a jumprelu of it"
            if "batchtopk" in str(architecture)
            else ""
        )
        raise UserError(
            f"{path}: architecture is {architecture!r}, which raysae does not have; it reads "
            f"{', '.join(VARIANTS)}{hint}"
        )
    version = str(metadata.get("sae_lens_version") or "none")[:40]
    first = version.split(".")[0]
    if not (first.isascii() and first.isdecimal()) or int(first) < 6:
        raise UserError(
            f"{path}: metadata.sae_lens_version is {version}; raysae reads the format of SAELens 6: "
            "load it there with SAE.load_from_disk and save it again"
        )
    refuse_unknown(f"{path}", settings, HARMLESS, _supported(architecture, settings), ADVICE)
    described = {key: value for key, value in metadata.items() if key in WHERE}
    refuse_unknown(f"{path}: metadata", described, (), WHERE, ADVICE)


def _supported(architecture: str, settings: Mapping[str, Any]) -> dict[str, list[Any]]:
    """The values that raysae follows, of settings that matter."""
    both = [True, False]
    supported: dict[str, list[Any]] = {**WHERE, **CHANGED, "normalize_activations": ["none", None]}
    supported |= {"apply_b_dec_to_input": both, "rescale_acts_by_decoder_norm": [False]}
    if architecture == "topk":
        k = settings.get("k")
        supported |= {"rescale_acts_by_decoder_norm": both, "k": [k]}
        supported |= {"activation_fn": ["topk", None], "activation_fn_str": ["topk", None]}
        supported["activation_fn_kwargs"] = [{"k": k}, {}, None]
    return supported


@torch.no_grad()
def _read_x_minus_b_dec(sae: SAE) -> None:
    """Change the biases of an encoder that reads x, in place, so that it reads x - b_dec."""
    if sae.config.variant == "gated":
        r_mag_F: Tensor = sae.get_parameter("r_mag")
        scaled_DF = sae.W_enc * r_mag_F.exp()
        b_mag_F = sae.get_parameter("b_mag")
        b_mag_F.copy_(bias_with_b_dec(b_mag_F, scaled_DF, sae.b_dec))
    sae.b_enc.copy_(bias_with_b_dec(sae.b_enc, sae.W_enc, sae.b_dec))


def _metadata(sae: SAE) -> dict[str, Any]:
    """The SAE's origin under SAELens's names; all of raysae's metadata is under ``raysae``."""
    own = sae.metadata
    named = {
        "model_name": part(own, "model").get("id"),
        "hook_name": hook_name(own),
        "dataset_path": part(own, "dataset").get("id"),
        "context_size": own.get("context_length"),
        "raysae": {"variant": sae.config.variant, **own},
    }
    known = {key: value for key, value in named.items() if value is not None}
    return {"sae_lens_version": SAE_LENS_VERSION, **known}


def _origin(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of ``_metadata``: the SAE's origin under raysae's names."""
    if "raysae" in metadata:
        return dict(part(metadata, "raysae"))
    found = re.fullmatch(r"blocks\.(\d+)\.hook_(\w+)", str(metadata.get("hook_name")))
    named = {
        "model": {"id": metadata.get("model_name")},
        "dataset": {"id": metadata.get("dataset_path")},
        "context_length": metadata.get("context_size"),
        "layer": int(found[1]) if found else None,
        "hookpoint": found[2] if found else None,
    }
    return {**named, "saelens": dict(metadata)}


def hook_name(metadata: Mapping[str, Any]) -> str | None:
    """TransformerLens's name, such as ``blocks.8.hook_resid_post``; None if not known."""
    layer, hookpoint = metadata.get("layer"), metadata.get("hookpoint")
    return None if layer is None or not hookpoint else f"blocks.{layer}.hook_{hookpoint}"
