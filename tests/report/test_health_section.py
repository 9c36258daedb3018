"""The page's section on the health of the data: bounded, whatever the store."""

import pytest
import torch

import raysae
from raysae.activations.health import HEADS, LISTED, health_of_store
from raysae.activations.writer import write_store
from raysae.report.page import template
from raysae.sites import Site


def section(folder, rows_of_site, sites):
    generator = torch.Generator().manual_seed(0)
    rows = {Site(at, "all"): rows_of_site(at, generator) for at in range(sites)}
    split = {"validation": 0.1, "test": 0.1}
    write_store(folder, rows, provenance="imported", source={}, split=split)
    return template("health.html").render(
        health=health_of_store(raysae.open_store(folder)), heads=HEADS
    )


def with_large(at, generator):
    """100 rows; at odd layers, five of them are far larger."""
    rows = torch.randn(100, 8, generator=generator)
    rows[:5] *= 1 + 500 * (at % 2)
    return rows


def test_each_site_has_a_line_and_each_kind_of_thing_its_advice(tmp_path):
    page = section(tmp_path / "s", with_large, 4)
    assert page.count("<tr") == 1 + 4 and page.count('class="odd"') == 2
    assert "at 2 sites (most at layer" in page and "source.max_norm_ratio=10" in page
    assert "2 other sites: nothing unusual" in page and "not looked at" not in page
    assert all(f">{head.replace('>', '&gt;')}</th>" in page for head in HEADS)


@pytest.mark.parametrize("sites", [LISTED, 100])
def test_of_many_sites_the_worst_are_listed(tmp_path, sites):
    page = section(tmp_path / "s", with_large, sites)
    assert page.count("<tr") == LISTED + 1
    assert ("36 sites were not looked at" in page) == (sites == 100)
    assert ("left out of the table" in page) == (sites == 100)
