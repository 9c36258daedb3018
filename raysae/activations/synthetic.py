"""Synthetic activations: sums of known atoms, to check whether an SAE recovers them.

A row is a sum of unit-norm atoms, each present with probability p and magnitude uniform on
[0.5, 1.5], after the toy models of Elhage et al. 2022 and Sharkey et al. 2022.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save_file
from torch import Tensor

from raysae.activations.damage import DAMAGE, reason
from raysae.activations.hard_world import HardWorld
from raysae.activations.manifest import Manifest
from raysae.activations.schema import Dtype
from raysae.activations.store_files import StoreFiles
from raysae.activations.truth_files import write_families, write_sample
from raysae.activations.writer import refuse_existing, write_store
from raysae.errors import UserError
from raysae.sites import ALL, Site
from raysae.storage.files import replacing
from raysae.storage.trouble import as_os_error

TRUTH_FILE = "truth.safetensors"
PART_ROWS = 65_536
ATOMS_STREAM, ROWS_STREAM, SAMPLE_STREAM = 0, 1, 2
"""Separate random streams, not torch's: an SAE with the same seed cannot start from the truth."""


@dataclass(frozen=True)
class SuperpositionWorld:
    """``atoms`` random unit vectors in ``d_in`` dimensions; each is in a row with probability ``p``.

    Raises ValueError when ``d_in``, ``atoms`` or ``p`` is out of range.
    """

    d_in: int = 64
    atoms: int = 128
    p: float = 0.03
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.d_in, self.atoms) < 1 or not 0 < self.p <= 1:
            raise ValueError(f"{self}: expected d_in and atoms of at least 1, and 0 < p <= 1")

    def truth(self) -> Tensor:
        """The atoms ``[atoms, d_in]``, float32; every row has norm 1."""
        atoms = _random(self.seed, ATOMS_STREAM).standard_normal((self.atoms, self.d_in))
        atoms /= np.linalg.norm(atoms, axis=1, keepdims=True)
        return torch.from_numpy(atoms).float()

    def rows(self, count: int, part: int | tuple[int, ...] = 0) -> Tensor:
        """Draw ``count`` activations ``[count, d_in]``, float32; each ``part`` is another draw."""
        stream = (part,) if isinstance(part, int) else part
        return self._draw(count, _random(self.seed, ROWS_STREAM, *stream))[0]

    def sample(self, count: int) -> tuple[Tensor, Tensor]:
        """``count`` rows ``[count, d_in]`` that are in no store, and which atoms are in each ``[count,
        atoms]``, bool."""
        return self._draw(count, _random(self.seed, SAMPLE_STREAM))

    def _draw(self, count: int, random: np.random.Generator) -> tuple[Tensor, Tensor]:
        present = random.random((count, self.atoms)) < self.p
        magnitude = random.uniform(0.5, 1.5, (count, self.atoms))
        rows = torch.from_numpy(present * magnitude).float() @ self.truth()
        return rows, torch.from_numpy(present)

    def stream(self, count: int, layer: int) -> Iterator[Tensor]:
        """Draw ``count`` activations of one layer, in parts ``[rows, d_in]`` of at most ``PART_ROWS``."""
        for number, start in enumerate(range(0, count, PART_ROWS)):
            part = (layer, number) if number else layer
            yield self.rows(min(PART_ROWS, count - start), part)


@dataclass(frozen=True)
class HierarchicalWorld:
    """Atoms in families: a parent is in a row with probability ``p``. If it is, one of its ``children``
    is there too with probability ``child_p``. A child never occurs without its parent.

    After the toy models of Chanin et al. 2024, "A is for absorption", and Bussmann et al. 2025: an SAE
    with too few active latents saves one by merging the parent's direction into its children's.
    """

    d_in: int = 64
    parents: int = 16
    children: int = 4
    p: float = 0.12
    child_p: float = 0.8
    seed: int = 0

    def truth(self) -> Tensor:
        """The atoms ``[parents, 1 + children, d_in]``, float32, of norm 1; each family's parent first."""
        atoms = _random(self.seed, ATOMS_STREAM).standard_normal(
            (self.parents, 1 + self.children, self.d_in)
        )
        atoms /= np.linalg.norm(atoms, axis=2, keepdims=True)
        return torch.from_numpy(atoms).float()

    def draw(self, count: int, part: int = 0) -> tuple[Tensor, Tensor]:
        """Draw ``count`` activations ``[count, d_in]``, float32, and which parents are in each row,
        ``[count, parents]``, bool. Each ``part`` is another draw."""
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


def read_truth(files: StoreFiles, d_in: int) -> Tensor | None:
    """Read the true atoms ``[atoms, d_in]`` of the synthetic store that ``files`` are.

    Returns None when the store has no ``truth.safetensors``. Raises UserError when the file is damaged
    or its d_in differs.
    """
    path = files.file(TRUTH_FILE)
    if not path.is_file():
        return None
    try:
        atoms = load(path.content())["atoms"]
    except (SafetensorError, *DAMAGE) as error:
        raise UserError(
            f"{path}: holds no readable 'atoms' ({reason(error)}); make the store again"
        ) from None
    if not atoms.is_floating_point() or not bool(atoms.float().isfinite().all()):
        raise UserError(f"{path}: atoms are {atoms.dtype}, or not finite; make the store again")
    if atoms.ndim != 2 or atoms.shape[1] != d_in:
        raise UserError(f"{path}: atoms are {list(atoms.shape)}, expected [atoms, {d_in}]")
    return atoms


def _random(seed: int, *stream: int) -> np.random.Generator:
    return np.random.default_rng([seed, *stream])


def write_synthetic_store(
    folder: Path,
    world: SuperpositionWorld | HardWorld,
    rows: int,
    *,
    sites: int = 1,
    shard_rows: int | None = None,
    dtype: Dtype = "float32",
    validation: float = 0.1,
    test: float = 0.1,
) -> Manifest:
    """Write a store with ``rows`` rows at each of ``sites`` layers; the layers are independent draws.

    ``validation`` and ``test`` are fractions of the rows; ``shard_rows`` limits a shard. The true atoms
    are written to ``truth.safetensors`` in the store (``atoms [atoms, d_in]``), a sample of further rows
    and what fires in them as ``truth_files`` says. Returns the manifest.
    Raises UserError when the folder holds a store already.
    """
    refuse_existing(folder)
    # before the manifest, which makes the folder a store
    with replacing(folder / TRUTH_FILE) as temporary, as_os_error(temporary):
        save_file({"atoms": world.truth()}, temporary)
    measured = write_sample(folder, world, rows)
    if isinstance(world, HardWorld):
        write_families(folder, {**world.described(), **measured})
    return write_store(
        folder,
        {Site(layer, ALL): world.stream(rows, layer) for layer in range(sites)},
        provenance="synthetic", source={"world": asdict(world), "rows": rows}, dtype=dtype,
        split={"validation": validation, "test": test}, shard_rows=shard_rows,
    )  # fmt: skip
