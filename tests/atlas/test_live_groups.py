"""The sites of an atlas on live data: which are trained in which pass."""

import pytest
import ray

import raysae.atlas.live as module
from raysae.atlas.live import groups_of_passes, sites_each
from raysae.atlas.worker import SiteSettings
from raysae.cluster.reading import MEMORY_FRACTION
from raysae.errors import UserError
from raysae.sae import sae_config
from raysae.sites import Site
from raysae.training import TrainingConfig
from tests.extraction.local_pool import extracted_here, live_recipe

SITES = [Site(layer, -1) for layer in range(24)]


@pytest.mark.parametrize(
    ("sites", "workers", "each", "sizes"),
    [
        (24, 1, 24, [24]), (24, 2, 12, [12, 12]), (24, 2, 5, [5, 5, 5, 5, 2, 2]),
        (5, 2, 3, [2, 3]), (3, 4, 1, [1, 1, 1]), (1, 4, 24, [1]), (7, 2, 2, [2, 2, 1, 2]),
    ],
)  # fmt: skip
def test_passes_are_even_and_hold_every_site_once(sites, workers, each, sizes):
    groups = groups_of_passes(SITES[:sites], workers, each)
    assert list(map(len, groups)) == sizes
    assert [site for group in groups for site in group] == SITES[:sites]
    assert all(0 < len(group) <= each for group in groups)


@pytest.fixture(scope="module")
def live(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        recipe = live_recipe(tmp_path_factory.mktemp("live") / "store", "source.positions=[-1]")
        return extracted_here(patch, recipe)[0]


@pytest.fixture
def settings(live):
    training = TrainingConfig(epochs=1, batch_size=32, shuffle_rows=64)
    return SiteSettings(live.digest, (0,), sae_config({"d_sae": 32, "k": 2}), training, {})


def memory(monkeypatch, size):
    there = {"memory": size / MEMORY_FRACTION}
    monkeypatch.setattr(ray, "cluster_resources", lambda: there)


def test_as_many_sites_are_trained_at_once_as_fit(live, settings, monkeypatch):
    sites, training = live.sites, module.training_bytes(live.d_in, 32, settings.training)
    one = 2 * 64 * live.row_bytes + training
    memory(monkeypatch, 100 * one)
    assert sites_each(live, settings, sites, 1) == 3 and sites_each(live, settings, sites, 2) == 2
    memory(monkeypatch, 2.5 * one)
    assert sites_each(live, settings, sites, 1) == 2 and sites_each(live, settings, sites, 2) == 1


def test_not_even_one_site_is_refused_with_what_to_do(live, settings, monkeypatch):
    windows = 2 * 64 * live.row_bytes
    memory(monkeypatch, windows + 10)
    with pytest.raises(UserError, match=r"an SAE of d_sae 32 takes .* lower training.shuffle_rows"):
        sites_each(live, settings, live.sites, 1)
    memory(monkeypatch, windows / 2)
    with pytest.raises(UserError, match=r"shuffle windows .*shuffle_rows of at most 3\d"):
        sites_each(live, settings, live.sites, 1)
