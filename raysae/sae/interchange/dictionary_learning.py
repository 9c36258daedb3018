"""dictionary_learning: ``config.json`` and ``ae.pt``, for its ``utils.load_dictionary``.

``ae.pt`` is a pickle of tensors, read with ``weights_only``. Some of its classes, such as JumpReLU,
encode x and not x - b_dec; the encoder's bias is converted. Its loader rescales an ``AutoEncoder``
to decoder rows of unit norm, and so does ``read``. Shapes: D d_in, F d_sae.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from raysae.errors import UserError
from raysae.sae.base import SAE
from raysae.sae.checkpoint import made_sae, require, whole_numbers
from raysae.sae.config import CONFIGS
from raysae.sae.interchange.saelens import hook_name
from raysae.sae.interchange.settings import (
    bias_with_b_dec,
    bias_without_b_dec,
    fold_decoder_norm,
    keys_and_values,
    part,
    read_settings,
    refuse_unknown,
    transposed,
)
from raysae.storage.files import write_json
from raysae.storage.tensors import tensor_problem
from raysae.storage.untrusted import usable_path

WEIGHTS_FILE, SETTINGS_FILE = "ae.pt", "config.json"
Tensors = dict[str, Tensor]
WHOLE = (torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64)
SHOWN = 10
"""Values of a tensor that a message shows, at most."""
MOST_GROUPS = 10_000
"""Nested dictionaries of a Matryoshka SAE, at most."""

LINEAR = {"encoder.weight": "W_enc", "encoder.bias": "b_enc", "decoder.weight": "W_dec"}
BY_RANK = {**LINEAR, "b_dec": "b_dec"}
SAME = {name: name for name in ("W_enc", "b_enc", "W_dec", "b_dec")}
TRANSPOSED = ("encoder.weight", "decoder.weight")


@dataclass(frozen=True)
class Dictionary:
    """A class of dictionary_learning: our variant for it, its trainer, our names of its tensors."""

    variant: str
    trainer: str
    names: Mapping[str, str]
    reads_x: bool = False
    """Whether its encoder reads x, while ours reads x - b_dec."""


DICTIONARIES = {
    "AutoEncoderTopK": Dictionary("topk", "TopKTrainer", BY_RANK),
    "BatchTopKSAE": Dictionary(
        "batch_topk", "BatchTopKTrainer", {**BY_RANK, "threshold": "threshold"}
    ),
    "MatryoshkaBatchTopKSAE": Dictionary(
        "matryoshka", "MatryoshkaBatchTopKTrainer", {**SAME, "threshold": "threshold"}
    ),
    "JumpReluAutoEncoder": Dictionary(
        "jumprelu", "JumpReluTrainer", {**SAME, "threshold": "threshold"}, reads_x=True
    ),
    "GatedAutoEncoder": Dictionary(
        "gated",
        "GatedSAETrainer",
        {
            "encoder.weight": "W_enc",
            "gate_bias": "b_enc",
            "mag_bias": "b_mag",
            "r_mag": "r_mag",
            "decoder.weight": "W_dec",
            "decoder_bias": "b_dec",
        },
    ),
    "AutoEncoder": Dictionary("relu_l1", "StandardTrainer", {**LINEAR, "bias": "b_dec"}),
    "AutoEncoderNew": Dictionary(
        "relu_l1", "StandardTrainerAprilUpdate", {**LINEAR, "decoder.bias": "b_dec"}, reads_x=True
    ),
}
SECTIONS = ("trainer", "buffer")
TRAINING = (
    *("trainer_class", "dict_class", "activation_dim", "dict_size", "k", "lr", "steps", "seed"),
    *("device", "layer", "lm_name", "submodule_name", "wandb_name", "warmup_steps", "decay_start"),
    *("resample_steps", "auxk_alpha", "top_k_aux", "threshold_beta", "threshold_start_step"),
    *("l0_penalty", "l1_penalty", "sparsity_penalty", "sparsity_coeff", "sparsity_coefficient"),
    *("sparsity_function", "sparsity_warmup_steps", "sparsity_queue_length", "n_sparsity_updates"),
    *("sparsity_loss_queue_length", "adaptive_sparsity_penalty", "activation_queue_length"),
    *("bandwidth", "target_l0", "p", "next_p", "p_start", "p_end", "anneal_start"),
    *("group_fractions", "group_weights", "group_sizes", "weights_temperature", "gp_reg_coeff"),
    *("lambda", "lambda_warm_steps", "steps_before_annealing"),
)
"""What its trainers write that its dictionaries do not read (``k`` and group sizes are tensors, too)."""
BUFFER = (
    *(
        "d_submodule",
        "n_ctxs",
        "ctx_len",
        "refresh_batch_size",
        "out_batch_size",
        "device",
        "layer",
    ),
)
ADVICE = {
    "io": "a transcoder predicts other activations than it reads",
    "norm_factor": "scale the biases with scale_biases(norm_factor) in dictionary_learning, save, and "
    "remove the key; if its trainSAE saved the file, they are scaled already",
}
CLASS_OF = {dictionary.variant: name for name, dictionary in reversed(DICTIONARIES.items())}


def write(sae: SAE, folder: Path) -> None:
    """Write ``sae`` so that dictionary_learning loads it with equal features, reconstructions."""
    name = _class_of(sae)
    tensors = _their_tensors(sae, DICTIONARIES[name])
    torch.save(tensors, folder / WEIGHTS_FILE)
    training, metadata = part(sae.metadata, "training"), sae.metadata
    trainer = {
        "trainer_class": DICTIONARIES[name].trainer,
        "dict_class": name,
        "activation_dim": sae.d_in,
        "dict_size": sae.config.d_sae,
        "lr": training.get("lr"),
        "steps": training.get("steps"),
        "seed": training.get("seed"),
        "layer": metadata.get("layer"),
        "lm_name": part(metadata, "model").get("id"),
        "submodule_name": hook_name(metadata),
        "device": "cpu",
    }
    if "k" in tensors:
        trainer["k"] = int(tensors["k"])
    buffer = {"ctx_len": metadata.get("context_length"), "d_submodule": sae.d_in}
    write_json(folder / SETTINGS_FILE, {"trainer": trainer, "buffer": buffer})


def read(folder: Path) -> SAE:
    """The SAE that dictionary_learning saved in ``folder``; the pickle is read with
    ``weights_only``.

    Raises UserError when raysae has no variant for its class, does not know a setting or a tensor, or
    a file is missing or damaged.
    """
    path, weights = folder / SETTINGS_FILE, folder / WEIGHTS_FILE
    settings = read_settings(path)
    (trainer,) = require(path, settings, "trainer")
    trainer = keys_and_values(f"{path}: trainer", trainer)
    _check(path, settings, trainer)
    (name,) = require(path, trainer, "dict_class")
    if name not in list(DICTIONARIES):  # a list, as a damaged value may not be hashable
        raise UserError(
            f"{path}: trainer.dict_class is {name!r}; raysae reads {', '.join(DICTIONARIES)}"
        )
    dictionary = DICTIONARIES[name]
    d_in, d_sae = whole_numbers(path, trainer, "activation_dim", "dict_size")
    theirs = _unpickled(weights)
    require(weights, theirs, *dictionary.names)
    config = {
        "variant": dictionary.variant,
        "d_sae": d_sae,
        **_ranks(folder, dictionary.variant, theirs, trainer),
    }
    sae = made_sae(path, config, d_in, weights, _our_tensors(theirs, dictionary))
    _convert(sae, name)
    origin = {"layer": trainer.get("layer"), "model": {"id": trainer.get("lm_name")}}
    sae.metadata = {"imported_from": "dictionary_learning", **origin}
    return sae


def _check(path: Path, settings: Mapping[str, Any], trainer: Mapping[str, Any]) -> None:
    """Raise UserError when a setting is not known."""
    refuse_unknown(f"{path}", settings, SECTIONS, {})
    refuse_unknown(f"{path}: trainer", trainer, TRAINING, {"norm_factor": [1, 1.0, None]}, ADVICE)
    buffer = keys_and_values(f"{path}: buffer", settings.get("buffer") or {})
    refuse_unknown(f"{path}: buffer", buffer, BUFFER, {"io": ["in", "out", None]}, ADVICE)
    if "transcoder" in str(trainer.get("trainer_class")).lower():
        raise UserError(
            f"{path}: trainer.trainer_class is {trainer['trainer_class']!r}: {ADVICE['io']}"
        )


def _class_of(sae: SAE) -> str:
    """The class whose features are the same after loading: an ``AutoEncoder`` would be rescaled."""
    norm_F = sae.W_dec.norm(dim=1)
    name = CLASS_OF[sae.config.variant]
    rescaled = name == "AutoEncoder" and not torch.allclose(norm_F, torch.ones_like(norm_F))
    return "AutoEncoderNew" if rescaled else name


@torch.no_grad()
def _convert(sae: SAE, name: str) -> None:
    """Rescale ``sae`` as their loader does and let its encoder read x - b_dec, in place."""
    if name == "AutoEncoder":
        fold_decoder_norm(sae)
    if DICTIONARIES[name].reads_x:
        sae.b_enc.copy_(bias_with_b_dec(sae.b_enc, sae.W_enc, sae.b_dec))


def _their_tensors(sae: SAE, dictionary: Dictionary) -> Tensors:
    ours = {name: tensor.detach().cpu().clone() for name, tensor in sae.state_dict().items()}
    if dictionary.reads_x:
        ours["b_enc"] = bias_without_b_dec(ours["b_enc"], ours["W_enc"], ours["b_dec"])
    tensors = {
        theirs: (ours[name].T if theirs in TRANSPOSED else ours[name]).contiguous()
        for theirs, name in dictionary.names.items()
    }
    if hasattr(sae.config, "k"):
        tensors["k"] = torch.tensor(sae.config.k, dtype=torch.int)
        tensors.setdefault(
            "threshold", torch.tensor(-1.0)
        )  # their value for a TopK without a threshold
    if hasattr(sae.config, "widths"):
        sizes = [high - low for low, high in pairwise([0, *sae.config.widths])]
        tensors["group_sizes"] = torch.tensor(sizes)
    return tensors


def _our_tensors(theirs: Tensors, dictionary: Dictionary) -> Tensors:
    besides = {name for name in _besides(dictionary.variant) if name not in dictionary.names}
    return {
        dictionary.names.get(name, name): transposed(tensor) if name in TRANSPOSED else tensor
        for name, tensor in theirs.items()
        if name not in besides
    }


def _besides(variant: str) -> list[str]:
    """The tensors of a class that are no parameters: k, and for TopK a threshold, which its encode
    does not use unless it is asked to."""
    names = {"k": ["k", "threshold"], "prefixes": ["group_sizes"]}
    return [
        name for field, all in names.items() if hasattr(CONFIGS[variant], field) for name in all
    ]


def _ranks(
    folder: Path, variant: str, theirs: Tensors, trainer: Mapping[str, Any]
) -> dict[str, Any]:
    """``k`` and ``prefixes``, where the variant has them."""
    ranks: dict[str, Any] = {}
    if hasattr(CONFIGS[variant], "k"):
        if "k" in theirs:
            (ranks["k"],) = _whole(folder / WEIGHTS_FILE, theirs, "k", 1)
            said = trainer.get("k")
            if ranks["k"] > 0 and said not in (None, ranks["k"]):  # their loader refuses it, too
                raise UserError(
                    f"{folder / SETTINGS_FILE}: trainer.k is {said!r}, but {WEIGHTS_FILE} has "
                    f"k {ranks['k']}; set it to the k that is meant"
                )
        else:  # older files have no such tensor
            (ranks["k"],) = whole_numbers(folder / SETTINGS_FILE, trainer, "k")
    if hasattr(CONFIGS[variant], "prefixes"):
        ranks["prefixes"] = _prefixes(folder / WEIGHTS_FILE, theirs, trainer["dict_size"])
    return ranks


def _prefixes(path: Path, theirs: Tensors, d_sae: int) -> tuple[float, ...]:
    require(path, theirs, "group_sizes")
    widths = list(accumulate(_whole(path, theirs, "group_sizes")))
    if widths[-1] != d_sae:
        raise UserError(f"{path}: group_sizes add up to {widths[-1]}, but dict_size is {d_sae}")
    return tuple(width / d_sae for width in widths)


def _reason(error: Exception) -> str:
    """Torch's message, without its advice to turn ``weights_only`` off."""
    found = str(error).split("WeightsUnpickler error:")[-1].strip()
    return found.splitlines()[0].split(" was not an allowed")[0] if found else type(error).__name__


def _whole(path: Path, theirs: Tensors, name: str, most: int = MOST_GROUPS) -> list[int]:
    """The values of tensor ``name``. Raises UserError unless it holds 1 to ``most`` whole numbers."""
    tensor = theirs[name]
    problem = tensor_problem(tensor)
    if problem or tensor.dtype not in WHOLE or not 0 < tensor.numel() <= most:
        shown = problem or (tensor.tolist() if tensor.numel() <= SHOWN else list(tensor.shape))
        number = "one whole number" if most == 1 and tensor.numel() > 1 else "whole numbers"
        raise UserError(f"{path}: {name} is {shown}; expected {number}")
    return tensor.flatten().tolist()


def _unpickled(path: Path) -> Tensors:
    if not usable_path(path).is_file():
        raise UserError(f"{path}: not found; the folder is not complete")
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can raise any exception
        raise UserError(f"{path}: not a readable file of tensors ({_reason(error)})") from None
    if not isinstance(tensors, dict):
        raise UserError(f"{path}: expected tensors by name, found a {type(tensors).__name__}")
    for name, tensor in tensors.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise UserError(
                f"{path}: expected tensors by name, found a {type(tensor).__name__} as {name!r}"
            )
        if problem := tensor_problem(tensor):
            raise UserError(f"{path}: {name} is {problem}; expected plain weights")
    return tensors
