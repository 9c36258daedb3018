"""Exported SAEs in the formats of other libraries, and what changes their files."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from raysae.errors import UserError
from raysae.sae import load_sae
from raysae.sae.interchange import FORMATS
from raysae.sae.variants import VARIANTS

TAKEN = [
    (format, variant)
    for format in FORMATS
    for variant in VARIANTS
    if format != "sparsify" or variant in ("topk", "hierarchical_topk")
]
BACK_AS = {
    ("saelens", "batch_topk"): "jumprelu",
    ("saelens", "matryoshka"): "jumprelu",
    **{(format, "hierarchical_topk"): "topk" for format in FORMATS},
}
"""What comes back as another variant than it went."""

SETTINGS = {"saelens": "cfg.json", "sparsify": "cfg.json", "dictionary_learning": "config.json"}
WEIGHTS = {
    "saelens": "sae_weights.safetensors",
    "sparsify": "sae.safetensors",
    "dictionary_learning": "ae.pt",
}
GONE = object()


def refusal(folder, format=None):
    with pytest.raises(UserError) as error:
        load_sae(folder, format=format)
    assert str(folder) in str(error.value)
    return str(error.value)


def edit(folder, format, key, value):
    """Set ``key``, or one in ``trainer`` or ``metadata`` by a dot, in the settings."""
    file = folder / SETTINGS[format]
    settings = json.loads(file.read_text())
    *section, last = key.split(".")
    holder = settings[section[0]] if section else settings
    if value is GONE:
        del holder[last]
    else:
        holder[last] = value
    file.write_text(json.dumps(settings))


def edit_tensors(folder, format, **changes):
    """Replace tensors in the weights' file, dots in names written as ``__``."""
    file = folder / WEIGHTS[format]
    pickled = format == "dictionary_learning"
    tensors = torch.load(file, weights_only=True) if pickled else load_file(file)
    tensors |= {name.replace("__", "."): value for name, value in changes.items()}
    left = {name: value for name, value in tensors.items() if value is not GONE}
    torch.save(left, file) if pickled else save_file(left, file)
