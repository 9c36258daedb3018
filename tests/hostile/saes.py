"""A small SAE in any format, to be damaged."""

import torch

import raysae
from raysae.sae.config import sae_config
from raysae.sae.variants import build_sae

D_IN, D_SAE = 6, 8


def saved(form, folder, variant="topk"):
    """A small SAE in a format, in ``folder``."""
    settings = {"variant": variant, "d_sae": D_SAE}
    if variant in ("topk", "batch_topk", "matryoshka", "hierarchical_topk"):
        settings["k"] = 2
    torch.manual_seed(0)
    sae = build_sae(sae_config(settings), D_IN)
    if form == "raysae":
        sae.save(folder)
    else:
        raysae.export_sae(sae, folder, form)
    return folder
