"""A small run on the pocket GPT-2 with an atlas, made without Ray: three sites, and one that failed."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from raysae import Site
from raysae.activations import Store
from raysae.atlas import worker as worker_module
from raysae.atlas.training import _row
from raysae.atlas.worker import AtlasWork, AtlasWorker, SiteSettings
from raysae.config import load_recipe
from raysae.records.run_files import MEMBERS, RunFiles
from raysae.sae.config import TopKConfig
from raysae.training import TrainingConfig
from tests.extraction.local_pool import extracted_here

FAILED, WHY = Site(2, "all"), "NonFiniteLossError: the loss is nan"


@dataclass(frozen=True)
class Run:
    """A run's folder, and the store that its atlas was trained on."""

    folder: Path
    store: Store

    def copy(self, to: Path) -> Path:
        """A copy of the run, to be damaged."""
        shutil.copytree(self.folder, to)
        return to


@pytest.fixture(scope="session")
def run(tmp_path_factory) -> Run:
    return made(tmp_path_factory.mktemp("library"), ["source.layers=[1, 2]"], FAILED)


@pytest.fixture(scope="session")
def wide_run(tmp_path_factory) -> Run:
    """A run on a store of two hookpoints."""
    several = ["source.layers=[1]", "source.hookpoint=[resid_post, mlp_out]"]
    return made(tmp_path_factory.mktemp("wide"), several)


def made(folder: Path, overrides: list[str], failed: Site | None = None) -> Run:
    """A run in ``folder`` whose atlas has every site of its store but the one that ``failed``."""
    recipe = load_recipe(
        None,
        [
            "name=small", f"runs_dir={folder / 'runs'}", f"store={folder / 'store'}",
            "source.sequences=120", "source.positions=[-1, all]", "source.validation=0.2", *overrides,
        ],
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        store, _ = extracted_here(patch, recipe)
        patch.setattr(worker_module, "prepare_worker", lambda: "cpu")
        files = RunFiles(recipe.run_folder)
        training = TrainingConfig(epochs=2, batch_size=256, lr=3e-3, evaluations=2)
        settings = SiteSettings(store.digest, (0,), TopKConfig(d_sae=48, k=4), training, {})
        worker = AtlasWorker(AtlasWork(files, str(store.path), settings, 1e9, 1e9))
        records = {}
        for site in store.sites:  # each alone, as on CPUs
            if site == failed:
                records[site] = {"failed": WHY}
            else:
                records |= _result(worker.do((site,), lambda: None))
    files.write_text(files.path / "config.yaml", recipe.anchored().to_yaml())
    files.write_atlas_metrics([_row(site, records[site]) for site in store.sites])
    return Run(files.path, store)


@pytest.fixture(scope="session")
def members_run(run, tmp_path_factory) -> Path:
    """The run, with the SAEs of two more seeds beside its first site."""
    folder = run.copy(tmp_path_factory.mktemp("members") / "run")
    site = folder / "atlas" / run.store.sites[0].folder
    for seed in (10, 2):
        name = f"{run.store.sites[0].folder},seed={seed}"  # as a trial's members are named
        shutil.copytree(site, site.with_suffix(MEMBERS) / name)
    return folder


def _result(work):
    while True:
        try:
            next(work)
        except StopIteration as end:
            return end.value
