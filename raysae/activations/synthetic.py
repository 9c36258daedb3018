"""The synthetic world: superposed atoms with a known dictionary, to check recovery against truth.

A row is a sum of unit-norm atoms, each present with probability p and magnitude uniform on
[0.5, 1.5], after the toy models of Elhage et al. 2022 and Sharkey et al. 2022.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from raysae.activations.manifest import Manifest
from raysae.activations.schema import Dtype
from raysae.activations.writer import write_store
from raysae.errors import UserError
from raysae.sites import ALL, Site
from raysae.storage.files import replacing

TRUTH_FILE = "truth.safetensors"
PART_ROWS = 65_536
ATOMS_STREAM, ROWS_STREAM = 0, 1
"""Separate random streams, none of them torch's: no SAE can start from the truth by sharing a seed."""


@dataclass(frozen=True)
class SuperpositionWorld:
    """``atoms`` random unit atoms in ``d_in`` dimensions, each on with probability ``p``."""

    d_in: int = 64
    atoms: int = 128
    p: float = 0.03
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.d_in, self.atoms) < 1 or not 0 < self.p <= 1:
            raise ValueError(f"no such world: {self}; it needs dimensions, atoms and 0 < p <= 1")

    def truth(self) -> Tensor:
        """The atoms, ``[atoms, d_in]``, rows of unit norm."""
        atoms = _random(self.seed, ATOMS_STREAM).standard_normal((self.atoms, self.d_in))
        atoms /= np.linalg.norm(atoms, axis=1, keepdims=True)
        return torch.from_numpy(atoms).float()

    def rows(self, count: int, part: int | tuple[int, ...] = 0) -> Tensor:
        """``count`` activations ``[count, d_in]``; each ``part`` is drawn anew."""
        random = _random(self.seed, ROWS_STREAM, *((part,) if isinstance(part, int) else part))
        present = random.random((count, self.atoms)) < self.p
        magnitude = random.uniform(0.5, 1.5, (count, self.atoms))
        return torch.from_numpy(present * magnitude).float() @ self.truth()

    def stream(self, count: int, layer: int) -> Iterator[Tensor]:
        """``count`` activations of one layer, in parts of at most ``PART_ROWS`` rows."""
        for number, start in enumerate(range(0, count, PART_ROWS)):
            part = (layer, number) if number else layer
            yield self.rows(min(PART_ROWS, count - start), part)


@dataclass(frozen=True)
class HierarchicalWorld:
    """Atoms in families: a parent is on with probability ``p``, and then, with probability ``child_p``,
    one of its ``children`` too, never a child without its parent.

    After the toy models of Chanin et al. 2024, "A is for absorption", and Bussmann et al. 2025: an SAE
    with too few active latents saves one by folding the parent into its children.
    """

    d_in: int = 64
    parents: int = 16
    children: int = 4
    p: float = 0.12
    child_p: float = 0.8
    seed: int = 0

    def truth(self) -> Tensor:
        """The atoms, ``[parents, 1 + children, d_in]``, each family's parent first; of unit norm."""
        atoms = _random(self.seed, ATOMS_STREAM).standard_normal(
            (self.parents, 1 + self.children, self.d_in)
        )
        atoms /= np.linalg.norm(atoms, axis=2, keepdims=True)
        return torch.from_numpy(atoms).float()

    def draw(self, count: int, part: int = 0) -> tuple[Tensor, Tensor]:
        """``count`` activations ``[count, d_in]``, and which parents are on ``[count, parents]``; each
        ``part`` is drawn anew."""
        random = _random(self.seed, ROWS_STREAM, part)
        shape = (count, self.parents)
        parent = random.random(shape) < self.p
        with_child = parent & (random.random(shape) < self.child_p)
        chosen = random.integers(self.children, size=shape)
        child = with_child[:, :, None] & (np.arange(self.children) == chosen[:, :, None])
        present = np.concatenate([parent[:, :, None], child], axis=2)
        magnitude = present * random.uniform(0.5, 1.5, present.shape)
        flat = torch.from_numpy(magnitude.reshape(count, -1)).float()
        return flat @ self.truth().flatten(0, 1), torch.from_numpy(parent)


def read_truth(folder: Path, d_in: int) -> Tensor | None:
    """The true atoms ``[atoms, d_in]`` of the synthetic store in ``folder``; None where there are none.

    Raises UserError when the file is damaged or of another d_in.
    """
    path = folder / TRUTH_FILE
    if not path.is_file():
        return None
    try:
        atoms = load_file(path)["atoms"]
    except (SafetensorError, KeyError) as error:
        raise UserError(
            f"{path}: holds no readable 'atoms' ({error}); make the store again"
        ) from None
    if atoms.ndim != 2 or atoms.shape[1] != d_in:
        raise UserError(f"{path}: atoms are {list(atoms.shape)}, expected [atoms, {d_in}]")
    return atoms


def _random(seed: int, *stream: int) -> np.random.Generator:
    return np.random.default_rng([seed, *stream])


def write_synthetic_store(
    folder: Path,
    world: SuperpositionWorld,
    rows: int,
    *,
    sites: int = 1,
    shard_rows: int | None = None,
    dtype: Dtype = "float32",
    validation: float = 0.1,
    test: float = 0.1,
) -> Manifest:
    """A store of ``rows`` rows at each of ``sites`` layers, independent draws of one world.

    The truth lies beside the shards in ``truth.safetensors`` (``atoms [atoms, d_in]``). Raises
    UserError when the folder holds a store already.
    """
    manifest = write_store(
        folder,
        {Site(layer, ALL): world.stream(rows, layer) for layer in range(sites)},
        provenance="synthetic", source={"world": asdict(world), "rows": rows}, dtype=dtype,
        split={"validation": validation, "test": test}, shard_rows=shard_rows,
    )  # fmt: skip
    with replacing(folder / TRUTH_FILE) as temporary:
        save_file({"atoms": world.truth()}, temporary)
    return manifest
