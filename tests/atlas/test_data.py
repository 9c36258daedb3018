"""Sites without data, and with too few rows for the dictionary."""

import pytest
import torch

import raysae
from raysae.activations.writer import write_store
from raysae.atlas.data import few_rows, nothing_to_train, rows_needed
from raysae.sae import sae_config
from raysae.sites import Site


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "s"
    rows = torch.randn(100, 4, generator=torch.Generator().manual_seed(0))
    sites = {Site(0, "all"): rows, Site(1, "all"): torch.ones(100, 4)}
    split = {"validation": 0.1, "test": 0.1}
    write_store(folder, sites, provenance="imported", source={}, split=split)
    return raysae.open_store(folder)


def test_where_nothing_can_be_trained_is_said(store):
    assert nothing_to_train(store, Site(0, "all")) is None
    assert "all 100 rows are the same" in nothing_to_train(store, Site(1, "all"))


@pytest.mark.parametrize(
    ("sae", "rows"),
    [
        ({"d_sae": 512, "k": 32}, 512),
        ({"d_sae": 512, "k": 4}, 1280),
        ({"d_sae": 512, "k": 1}, 5120),
        ({"variant": "relu_l1", "d_sae": 512, "l1_coefficient": 1.0}, 512),
    ],
)
def test_how_many_rows_a_dictionary_needs(sae, rows):
    assert rows_needed(sae_config(sae)) == rows


def test_too_few_rows_are_said_with_how_many_are_needed(store):
    assert few_rows(store, sae_config({"d_sae": 16, "k": 4}), store.sites) is None
    told = few_rows(store, sae_config({"d_sae": 64, "k": 4}), store.sites)
    rows = store.entry(Site(0, "all")).rows.train
    assert f"{rows} to train on" in told and "d_sae 64 needs 160" in told
    assert told.startswith("Few rows at layer 0, position all; layer 1, position all:")
