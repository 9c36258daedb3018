"""Small worlds with known features, and atlases whose SAEs know them, made without Ray or training."""

from pathlib import Path

import numpy as np
import torch

from raysae import Site
from raysae.activations import open_store
from raysae.activations.writer import write_store
from raysae.analysis.subject import Subject
from raysae.records.run_files import RunFiles
from raysae.sae import SAE
from raysae.sae.config import TopKConfig
from raysae.sae.variants import build_sae
from raysae.sites import ALL


def atoms(count: int, d_in: int, seed: int) -> torch.Tensor:
    """Unit rows, ``[count, d_in]``."""
    drawn = torch.randn(count, d_in, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(drawn, dim=1)


def codes(rows: int, count: int, p: float, seed: int) -> torch.Tensor:
    """Which atoms are in each row, and how much, ``[rows, count]``."""
    random = np.random.default_rng(seed)
    present = random.random((rows, count)) < p
    return torch.from_numpy(present * random.uniform(0.5, 1.5, (rows, count))).float()


def knowing(atoms_GD: torch.Tensor, k: int) -> SAE:
    """A TopK SAE whose latents are the atoms."""
    sae = build_sae(TopKConfig(d_sae=len(atoms_GD), k=k), atoms_GD.shape[1])
    with torch.no_grad():
        sae.W_dec.copy_(atoms_GD)
        sae.W_enc.copy_(torch.linalg.pinv(atoms_GD))
    return sae.eval()


def subject_of(folder: Path, rows: dict[Site, torch.Tensor], saes: dict[Site, SAE]) -> Subject:
    """An atlas and its store in ``folder``; half of the rows are for validation."""
    write_store(
        folder / "store", rows, provenance="synthetic", source={},
        split={"validation": 0.5, "test": 0.1},
    )  # fmt: skip
    store = open_store(folder / "store")
    for site, sae in saes.items():
        sae.metadata = {"store_digest": store.digest}
        sae.save(folder / "atlas" / site.folder)
    return Subject(str(folder / "atlas"), RunFiles(folder / "out"), str(folder / "store"), seed=3)


def layer(number: int) -> Site:
    """The site of all tokens at a layer."""
    return Site(number, ALL)


def done(phase, subject, settings, folder: Path) -> dict:
    """The folders of a phase's items, done here, one after another."""
    folders = {}
    for item in phase.items(subject, settings):
        folders[item] = folder / item.key
        folders[item].mkdir(parents=True)
        phase.work(subject, settings, item, folders[item], lambda: None)
    return folders
