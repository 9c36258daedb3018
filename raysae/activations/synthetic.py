"""The synthetic world: superposed atoms with a known dictionary, to check recovery against truth.

A row is a sum of unit-norm atoms, each present with probability p and magnitude uniform on
[0.5, 1.5], after the toy models of Elhage et al. 2022 and Sharkey et al. 2022.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from raysae.activations.manifest import Manifest
from raysae.activations.schema import Dtype
from raysae.activations.writer import write_store
from raysae.files import replacing
from raysae.sites import ALL, Site

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
        atoms = self._random(ATOMS_STREAM).standard_normal((self.atoms, self.d_in))
        atoms /= np.linalg.norm(atoms, axis=1, keepdims=True)
        return torch.from_numpy(atoms).float()

    def rows(self, count: int, part: int | tuple[int, ...] = 0) -> Tensor:
        """``count`` activations ``[count, d_in]``; each ``part`` is drawn anew."""
        random = self._random(ROWS_STREAM, *((part,) if isinstance(part, int) else part))
        present = random.random((count, self.atoms)) < self.p
        magnitude = random.uniform(0.5, 1.5, (count, self.atoms))
        return torch.from_numpy(present * magnitude).float() @ self.truth()

    def stream(self, count: int, layer: int) -> Iterator[Tensor]:
        """``count`` activations of one layer, in parts of at most ``PART_ROWS`` rows."""
        for number, start in enumerate(range(0, count, PART_ROWS)):
            part = (layer, number) if number else layer
            yield self.rows(min(PART_ROWS, count - start), part)

    def _random(self, *stream: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, *stream])


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
