"""One exchange of SAEs with the peers a session: their program runs once, in their environment."""

import json
import os
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from torch import Tensor

from raysae import Site, export_atlas
from raysae.sae import SAE, export_sae, load_sae, save_sae
from raysae.sae.variants import VARIANTS
from tests.sae.lively import METADATA, lively, rows

ROOT = Path(__file__).parents[2]
PROGRAM = Path(__file__).parent / "peer_program.py"

OURS = {
    **{variant: (variant, False) for variant in VARIANTS},
    "topk with norms": ("topk", True),
    "relu_l1 with norms": ("relu_l1", True),
}
"""The SAEs that we export, by name: their variant, and whether decoder rows have norms other than 1."""
TAKEN = {
    "saelens": list(OURS),
    "sparsify": ["topk", "topk with norms", "hierarchical_topk"],
    "dictionary_learning": list(OURS),
}
"""Which of them each format takes."""
ATLAS = {Site(0, -1): "topk", Site(0, "all"): "gated", Site(11, "all"): "batch_topk"}
"""The sites of an atlas that is exported to SAELens whole, each with its variant."""


@dataclass(frozen=True)
class Exchange:
    """A folder that the peers' program has been through, and the rows that all SAEs read."""

    folder: Path
    x: Tensor

    def sae(self, whose: str, format: str, name: str) -> SAE:
        """An SAE as we have it: our own before its export, theirs as we load it."""
        if whose == "ours":
            return lively(*OURS[name])
        return load_sae(self.folder / whose / format / name, format=format)

    def answer(self, whose: str, format: str, name: str) -> dict[str, Tensor]:
        """``features`` and ``reconstruction`` of x by the SAE as the peer loaded it."""
        return load_file(f"{self.folder / 'answers' / whose / format / name}.safetensors")

    def figures(self, whose: str, format: str, name: str) -> dict[str, Any]:
        """The peer's own figures."""
        return json.loads(
            Path(f"{self.folder / 'answers' / whose / format / name}.json").read_text()
        )


@pytest.fixture(scope="session")
def peer_python() -> str:
    """Their environment's python. RAYSAE_PEERS names it; RAYSAE_PEERS_WAIT are seconds to wait for one
    that is being made."""
    if named := os.environ.get("RAYSAE_PEERS"):
        return named
    deadline = time.monotonic() + float(os.environ.get("RAYSAE_PEERS_WAIT", "0"))
    while not _made() and time.monotonic() < deadline:
        time.sleep(1)
    if not _made():
        pytest.skip(
            "no environment with SAELens, sparsify, dictionary_learning: scripts/peers.sh makes it"
        )
    return str(ROOT / ".peers" / "bin" / "python")


def _made() -> bool:
    return any((ROOT / ".peers").glob(".installed-*"))


@pytest.fixture(scope="session")
def exchange(peer_python, tmp_path_factory) -> Exchange:
    folder, x = tmp_path_factory.mktemp("exchange"), rows()
    save_file({"x": x}, folder / "x.safetensors")
    for format, names in TAKEN.items():
        for name in names:
            export_sae(lively(*OURS[name]), folder / "ours" / format / name, format)
    for site, variant in ATLAS.items():
        save_sae(lively(variant), folder / "own" / site.folder, {**METADATA, "layer": site.layer})
    export_atlas(folder / "own", folder / "atlas" / "saelens", "saelens")
    done = subprocess.run(
        [peer_python, PROGRAM, folder],
        env={
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
            "SPARSIFY_DISABLE_TRITON": "1",
        },
        check=False,
        capture_output=True,
        text=True,
        timeout=1800,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return Exchange(folder, x)
