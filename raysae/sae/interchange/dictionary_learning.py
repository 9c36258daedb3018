"""dictionary_learning: ``config.json`` and ``ae.pt``, for ``dictionary_learning.utils.load_dictionary``.

``ae.pt`` is a pickle of tensors, written and read with ``weights_only``. Its JumpReLU reads x and not
x - b_dec; the encoder's bias makes up for it. Shapes: D d_in, F d_sae.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor

from raysae.errors import UserError
from raysae.files import write_json
from raysae.sae.base import SAE
from raysae.sae.interchange.saelens import hook_name
from raysae.sae.interchange.settings import (
    bias_with_b_dec,
    bias_without_b_dec,
    made_sae,
    read_settings,
    require,
)

WEIGHTS_FILE, SETTINGS_FILE = "ae.pt", "config.json"
Tensors = dict[str, Tensor]

LINEAR = {"encoder.weight": "W_enc", "encoder.bias": "b_enc", "decoder.weight": "W_dec"}
BY_RANK = {**LINEAR, "b_dec": "b_dec"}
SAME = {name: name for name in ("W_enc", "b_enc", "W_dec", "b_dec")}
TRANSPOSED = ("encoder.weight", "decoder.weight")


@dataclass(frozen=True)
class Dictionary:
    """One of its classes: the variant that it is here, its trainer, their tensors' names with ours."""

    variant: str
    trainer: str
    names: Mapping[str, str]
    reads_x: bool = False
    """Whether its encoder reads x where ours reads x - b_dec."""


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
CLASS_OF = {dictionary.variant: name for name, dictionary in reversed(DICTIONARIES.items())}


def write(sae: SAE, folder: Path) -> None:
    """Write ``sae`` so that dictionary_learning loads it with the same features and reconstructions."""
    name = CLASS_OF[sae.config.variant]
    tensors = _their_tensors(sae, DICTIONARIES[name])
    torch.save(tensors, folder / WEIGHTS_FILE)
    training, metadata = sae.metadata.get("training") or {}, sae.metadata
    trainer = {
        "trainer_class": DICTIONARIES[name].trainer,
        "dict_class": name,
        "activation_dim": sae.d_in,
        "dict_size": sae.config.d_sae,
        "lr": training.get("lr"),
        "steps": training.get("steps"),
        "seed": training.get("seed"),
        "layer": metadata.get("layer"),
        "lm_name": (metadata.get("model") or {}).get("id"),
        "submodule_name": hook_name(metadata),
        "device": "cpu",
    }
    if "k" in tensors:
        trainer["k"] = int(tensors["k"])
    buffer = {"ctx_len": metadata.get("context_length"), "d_submodule": sae.d_in}
    write_json(folder / SETTINGS_FILE, {"trainer": trainer, "buffer": buffer})


def read(folder: Path) -> SAE:
    """The SAE that dictionary_learning saved; a pickle, read with ``weights_only``.

    Raises UserError when its class has no equal here.
    """
    path = folder / SETTINGS_FILE
    settings = read_settings(path).get("trainer")
    settings = settings if isinstance(settings, dict) else {}
    (name,) = require(path, settings, "dict_class")
    if name not in DICTIONARIES:
        raise UserError(
            f"{path}: trainer.dict_class is {name!r}; raysae reads {', '.join(DICTIONARIES)}"
        )
    theirs = _unpickled(folder / WEIGHTS_FILE)
    d_in, d_sae = require(path, settings, "activation_dim", "dict_size")
    config = {"variant": DICTIONARIES[name].variant, "d_sae": d_sae, **_ranks(theirs, settings)}
    tensors = _our_tensors(theirs, DICTIONARIES[name])
    sae = made_sae(folder / WEIGHTS_FILE, config, d_in, tensors)
    if DICTIONARIES[name].reads_x:
        with torch.no_grad():
            sae.b_enc.copy_(bias_with_b_dec(sae.b_enc, sae.W_enc, sae.b_dec))
    origin = {"layer": settings.get("layer"), "model": {"id": settings.get("lm_name")}}
    sae.metadata = {"imported_from": "dictionary_learning", **origin}
    return sae


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
        tensors.setdefault("threshold", torch.tensor(-1.0))  # theirs for a TopK that has none
    if hasattr(sae.config, "widths"):
        sizes = [high - low for low, high in pairwise([0, *sae.config.widths])]
        tensors["group_sizes"] = torch.tensor(sizes)
    return tensors


def _our_tensors(theirs: Tensors, dictionary: Dictionary) -> Tensors:
    besides = {"k", "group_sizes", "threshold"} - dictionary.names.keys()
    return {
        dictionary.names.get(name, name): tensor.T if name in TRANSPOSED else tensor
        for name, tensor in theirs.items()
        if name not in besides
    }


def _ranks(theirs: Tensors, settings: Mapping[str, Any]) -> dict[str, Any]:
    """``k`` and ``prefixes``, where the class has them."""
    ranks: dict[str, Any] = {}
    if "k" in theirs:
        ranks["k"] = int(theirs["k"])
    if "group_sizes" in theirs:
        widths = list(accumulate(theirs["group_sizes"].tolist()))
        ranks["prefixes"] = tuple(width / widths[-1] for width in widths)
    return ranks


def _unpickled(path: Path) -> Tensors:
    if not path.is_file():
        raise UserError(f"{path}: not found; the folder is not complete")
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True)
    except (UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path}: not a readable file of tensors ({first})") from None
    if not isinstance(tensors, dict) or not all(isinstance(t, Tensor) for t in tensors.values()):
        raise UserError(f"{path}: expected tensors by name, found a {type(tensors).__name__}")
    return tensors
