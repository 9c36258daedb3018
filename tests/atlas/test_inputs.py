"""What an atlas says of its inputs before it trains: the facts of each site, the advice once."""

import json

import pytest
import torch

import raysae
from raysae.activations.health import LISTED
from raysae.activations.writer import write_store
from raysae.atlas.training import _print_health
from raysae.console.board import set_log
from raysae.sites import Site


@pytest.fixture
def store(tmp_path):
    """60 sites; at the odd layers five of 100 rows are far larger."""
    generator = torch.Generator().manual_seed(0)
    sites = {}
    for at in range(60):
        rows = torch.randn(100, 4, generator=generator)
        rows[:5] *= 1 + 500 * (at % 2)
        sites[Site(at, "all")] = rows
    split = {"validation": 0.1, "test": 0.1}
    write_store(tmp_path / "s", sites, provenance="imported", source={}, split=split)
    return raysae.open_store(tmp_path / "s")


def test_facts_by_site_and_the_advice_once(store, capsys):
    _print_health(store, store.sites)
    told = capsys.readouterr().out
    assert told.count("Inputs at layer") == LISTED and "of the rows are sinks" in told
    assert told.count("source.max_norm_ratio=10") == 1 == told.count("training.sink_rows=leave_out")
    assert f"Inputs at {30 - LISTED} more sites are unusual too, but no worse" in told
    assert "Inputs at 30 other sites: the mean's norm is" in told
    _print_health(store, store.sites[:2])
    assert "more sites" not in capsys.readouterr().out


def test_the_log_has_every_site_as_json(store, capsys):
    set_log("json")
    try:
        _print_health(store, store.sites)
    finally:
        set_log("auto")
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    health = [event for event in events if event["event"] == "health"]
    assert [one["site"] for one in health] == [site.folder for site in store.sites]
    assert health[1]["over_100"] > 0 == health[0]["over_100"]
