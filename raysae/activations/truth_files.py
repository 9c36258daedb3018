"""What is known of a synthetic store's rows, beside the store: a sample of rows and which atoms fire in
them, and the rates and families of a hard world.

``truth_sample.safetensors`` holds ``rows [sample, d_in]``, float32, and ``fired [sample, bytes]``,
uint8: a bit for each atom, the first in the highest bit of the first byte. The rows are in no split.
"""

import json
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save_file
from torch import Tensor

from raysae.activations.damage import DAMAGE, reason
from raysae.activations.store_files import StoreFile, StoreFiles
from raysae.errors import UserError
from raysae.storage.files import replacing
from raysae.storage.trouble import as_os_error

SAMPLE_FILE = "truth_sample.safetensors"
FAMILIES_FILE = "truth.json"
TRUTH_FILES = frozenset({"truth.safetensors", SAMPLE_FILE, FAMILIES_FILE})
SAMPLE_ROWS = 16_384
SAMPLE_BYTES = 2**26


class Sampled(Protocol):
    """A world that can draw rows together with what fires in them."""

    @property
    def d_in(self) -> int:
        """Values per row."""

    @property
    def atoms(self) -> int:
        """Number of atoms."""

    def sample(self, count: int) -> tuple[Tensor, Tensor]:
        """Rows ``[count, d_in]`` and which atoms fire in them ``[count, atoms]``, bool."""


def write_sample(folder: Path, world: Sampled, rows: int) -> dict[str, Any]:
    """Write the sample, of at most ``rows`` rows; returns the measured rates and active atoms a row."""
    most = SAMPLE_BYTES // (4 * world.d_in + world.atoms // 8 + 1)
    rows_SD, fired_SG = world.sample(max(min(rows, SAMPLE_ROWS, most), 1))
    packed = torch.from_numpy(np.packbits(fired_SG.numpy(), axis=1))
    with replacing(folder / SAMPLE_FILE) as temporary, as_os_error(temporary):
        save_file({"rows": rows_SD.contiguous(), "fired": packed}, temporary)
    measured = fired_SG.double().mean(dim=0)
    return {
        "sample_rows": len(rows_SD),
        "measured_rates": [round(rate, 6) for rate in measured.tolist()],
        "measured_l0": round(float(measured.sum()), 4),
    }


def write_families(folder: Path, content: dict[str, Any]) -> None:
    """Write the rates and families, and what was measured of them in the sample."""
    with replacing(folder / FAMILIES_FILE) as temporary, as_os_error(temporary):
        temporary.write_text(json.dumps(content) + "\n", encoding="utf-8")


def read_sample(files: StoreFiles, atoms_GD: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """The sample's rows ``[sample, d_in]`` and which atoms fire ``[sample, atoms]``, bool; None for both
    where the store has none. Raises UserError when the file is damaged or does not fit the atoms."""
    path = files.file(SAMPLE_FILE)
    if not path.is_file():
        return None, None
    try:
        held = load(path.content())
        rows_SD, packed = held["rows"], held["fired"]
    except (SafetensorError, *DAMAGE) as error:
        raise UserError(
            f"{path}: holds no readable 'rows' and 'fired' ({reason(error)}); make the store again"
        ) from None
    _check(path, rows_SD, packed, atoms_GD)
    fired = np.unpackbits(packed.numpy(), axis=1, count=len(atoms_GD))
    return rows_SD.float(), torch.from_numpy(fired).bool()


def _check(path: StoreFile, rows_SD: Tensor, packed: Tensor, atoms_GD: Tensor) -> None:
    atoms, d_in = atoms_GD.shape
    wanted = f"expected [rows, {d_in}] finite and [rows, {-(-atoms // 8)}] uint8"
    fits = (
        rows_SD.ndim == packed.ndim == 2
        and len(rows_SD) == len(packed) > 0
        and (rows_SD.shape[1], packed.shape[1]) == (d_in, -(-atoms // 8))
        and packed.dtype == torch.uint8
        and rows_SD.is_floating_point()
        and bool(rows_SD.float().isfinite().all())
    )
    if not fits:
        raise UserError(
            f"{path}: rows are {list(rows_SD.shape)} {rows_SD.dtype}, fired {list(packed.shape)} "
            f"{packed.dtype}; {wanted}; make the store again"
        )
