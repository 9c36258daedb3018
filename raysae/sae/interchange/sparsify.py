"""sparsify (EleutherAI): ``cfg.json`` and ``sae.safetensors``, for ``SparseCoder.load_from_disk``.

It supports TopK only; other variants are refused.
"""

from pathlib import Path
from typing import Any

from raysae.sae.base import SAE
from raysae.sae.checkpoint import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    made_sae,
    read_tensors,
    require,
    whole_numbers,
    write_tensors,
)
from raysae.sae.interchange.settings import read_settings, refuse_unknown, transposed
from raysae.sae.topk import TopKSAE
from raysae.storage.files import write_json

SIZES = ("d_in", "num_latents", "expansion_factor", "k")
HARMLESS = (
    *SIZES,
    "normalize_decoder",  # only at the start and in training; loading takes the weights as they are
    *("version", "sae_version", "hookpoint", "layer", "model", "dataset", "device", "dtype"),
)
SUPPORTED: dict[str, list[Any]] = {
    "activation": ["topk"],
    "signed": [False],
    "multi_topk": [False],
    "skip_connection": [False],
    "transcode": [False],
}
ADVICE = {
    "signed": "an earlier sparsify selected by absolute value, with negative features",
    "multi_topk": "with true, sparsify's forward reconstructs from 4 * k latents (its encode from k): "
    "set it to false if k latents are meant",
    "transcode": "a transcoder predicts other activations than it reads",
    "skip_connection": "a linear skip connection adds W_skip to the reconstruction",
}


def write(sae: SAE, folder: Path) -> None:
    """Write a TopK SAE so that sparsify loads it with the same features and reconstructions."""
    assert isinstance(sae, TopKSAE), "export_sae refuses other variants"
    write_tensors(
        folder / WEIGHTS_FILE,
        {
            "encoder.weight": sae.W_enc.T,
            "encoder.bias": sae.b_enc,
            "W_dec": sae.W_dec,
            "b_dec": sae.b_dec,
        },
    )
    write_json(
        folder / CONFIG_FILE,
        {
            "activation": "topk",
            "expansion_factor": max(round(sae.config.d_sae / sae.d_in), 1),
            "normalize_decoder": True,
            "num_latents": sae.config.d_sae,
            "k": sae.config.k,
            "multi_topk": False,
            "skip_connection": False,
            "transcode": False,
            "d_in": sae.d_in,
        },
    )


def read(folder: Path) -> SAE:
    """The SAE that sparsify saved.

    Raises UserError when it is not a plain TopK autoencoder, a setting or a tensor is not known, or a
    file is missing or damaged.
    """
    path, weights = folder / CONFIG_FILE, folder / WEIGHTS_FILE
    settings = read_settings(path)
    refuse_unknown(f"{path}", settings, HARMLESS, SUPPORTED, ADVICE)
    d_in, k = whole_numbers(path, settings, "d_in", "k")
    if settings.get("num_latents"):
        (d_sae,) = whole_numbers(path, settings, "num_latents")
    else:
        (factor,) = whole_numbers(path, {"expansion_factor": 32, **settings}, "expansion_factor")
        d_sae = d_in * factor
    tensors = read_tensors(weights)
    W_enc_FD, b_enc_F = require(weights, tensors, "encoder.weight", "encoder.bias")
    del tensors["encoder.weight"], tensors["encoder.bias"]
    ours = {**tensors, "W_enc": transposed(W_enc_FD), "b_enc": b_enc_F}
    sae = made_sae(path, {"variant": "topk", "d_sae": d_sae, "k": k}, d_in, weights, ours)
    sae.metadata = {"imported_from": "sparsify"}
    return sae
