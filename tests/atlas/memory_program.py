"""Trains sites as a worker of the atlas does, and prints the bytes that it took at most, beside those
that a dry run counts. ``python memory_program.py FOLDER SEED...``"""

import sys
from pathlib import Path

from raysae import open_store
from raysae.activations.synthetic import SuperpositionWorld, write_synthetic_store
from raysae.atlas import worker as worker_module
from raysae.atlas.worker import AtlasWork, AtlasWorker, SiteSettings
from raysae.records.run_files import RunFiles
from raysae.sae.config import TopKConfig
from raysae.training import TrainingConfig
from raysae.training.memory import map_large_tensors, peak_bytes

D_IN, SITES = 512, 3


def prepare_worker() -> str:
    """As in a worker of Ray, but for Ray."""
    map_large_tensors()
    return "cpu"


def most() -> int:
    """The most bytes that this process has had in memory since ``forget``."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def forget() -> None:
    """Let the most be what it is now."""
    Path("/proc/self/clear_refs").write_text("5")


def main(folder: Path, d_sae: int, seeds: tuple[int, ...]) -> None:
    world = SuperpositionWorld(d_in=D_IN, atoms=2 * D_IN, p=0.02)
    write_synthetic_store(folder / "store", world, 800, sites=SITES, validation=0.2, test=0.0)
    store = open_store(folder / "store")
    worker_module.prepare_worker = prepare_worker
    training = TrainingConfig(epochs=1, batch_size=128, evaluations=1)

    def train(d_sae: int, where: Path) -> None:
        settings = SiteSettings(store.digest, seeds, TopKConfig(d_sae=d_sae, k=8), training, {})
        work = AtlasWork(RunFiles(where), str(store.path), settings, 1e9, 0.0)
        worker = AtlasWorker(work)
        for site in store.sites:
            assert all(worker.do((site,), lambda: None))

    train(64, folder / "warm")  # imports, and builds the kernels
    forget()
    before = most()
    train(d_sae, folder / "run")
    assert len(list((folder / "run").rglob("metrics.json"))) == SITES * len(seeds)
    print(most() - before, peak_bytes(D_IN, d_sae, training, len(seeds), len(seeds)))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), tuple(map(int, sys.argv[3:])))
