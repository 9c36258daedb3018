"""Where a sweep and an atlas run in a store of several hookpoints."""

from types import SimpleNamespace

import pytest

from raysae.atlas.sites import atlas_sites
from raysae.config import load_recipe
from raysae.errors import UserError
from raysae.pipeline.plan import sites_of_atlas
from raysae.records import products
from raysae.sites import Site

THERE = ("resid_post", "mlp_out")
STORE = SimpleNamespace(layers=[0, 1], positions=[-1], hookpoints=THERE, entry=lambda site: site)


def swept(*overrides, there=THERE):
    return load_recipe(None, list(overrides)).sites_of([0, 1], [-1], there)


def test_the_sweep_takes_the_named_hookpoint_or_the_first():
    assert swept() == [Site(0, -1, "resid_post")]
    assert swept("sweep.hookpoint=mlp_out") == [Site(0, -1, "mlp_out")]
    sites = "sweep.sites=[{layer: 1, position: -1, hookpoint: mlp_out}, {layer: 1, position: -1}]"
    assert swept(sites) == [Site(1, -1, "mlp_out"), Site(1, -1, "resid_post")]


def test_in_a_store_of_one_hookpoint_sites_have_no_name():
    one = ("mlp_out",)
    assert swept(there=one) == swept("sweep.hookpoint=mlp_out", there=one) == [Site(0, -1)]
    with pytest.raises(UserError, match=r"sweep.hookpoint: .* no hookpoint 'x'; it has mlp_out"):
        swept("sweep.hookpoint=x", there=one)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("sweep.hookpoint=attn_out", "no hookpoint 'attn_out'; it has resid_post, mlp_out"),
        ("sweep.sites=[{layer: 0, position: -1, hookpoint: x}]", "sweep.sites: .* hookpoint 'x'"),
        (
            "sweep.sites=[{layer: 0, position: -1, hookpoint: resid_post}, {layer: 0, position: -1}]",
            "names one site twice: resid_post, layer 0, position -1",
        ),
    ],
)
def test_a_sweep_at_what_is_not_there_is_refused(override, words):
    with pytest.raises(UserError, match=words):
        swept(override)


def test_sites_stand_instead_of_a_hookpoint():
    with pytest.raises(UserError, match="instead of layer, position and hookpoint"):
        load_recipe(None, ["sweep.sites=[{layer: 0, position: -1}]", "sweep.hookpoint=mlp_out"])


def test_the_atlas_takes_all_hookpoints_or_those_named():
    every = atlas_sites(STORE, None, None)
    assert every == sorted(every) and len(every) == 4
    assert every[:2] == [Site(0, -1, "mlp_out"), Site(0, -1, "resid_post")]
    assert atlas_sites(STORE, (1,), None, ("mlp_out",)) == [Site(1, -1, "mlp_out")]
    with pytest.raises(UserError, match=r"atlas.hookpoints: .*'attn_out'; it has resid_post, mlp"):
        atlas_sites(STORE, None, None, ("attn_out",))
    with pytest.raises(UserError, match="atlas.hookpoints names nothing"):
        atlas_sites(STORE, None, None, ())


def test_before_the_extraction_the_atlas_is_the_same():
    recipe = load_recipe(None, ["atlas.hookpoints=[mlp_out]"])
    assert sites_of_atlas(recipe, STORE) == [Site(0, -1, "mlp_out"), Site(1, -1, "mlp_out")]


def test_the_hookpoint_makes_the_products_through_the_sites_alone():
    plain, named = load_recipe(None), load_recipe(None, ["sweep.hookpoint=mlp_out"])
    sites = [Site(0, -1)]
    assert products.search(plain, "s", sites) == products.search(named, "s", sites)
    assert "sweep.hookpoint" not in products.search(plain, "s", sites)
    made = [
        products.trained("site", "s", [site], [0], plain.sae, plain.training)["sites"]
        for site in (Site(8, 3), Site(8, 3, "mlp_out"))
    ]
    assert made == [["layer=08/position=03"], ["hookpoint=mlp_out/layer=08/position=03"]]
