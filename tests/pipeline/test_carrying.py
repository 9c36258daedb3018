"""Layers that are not swept get their config from those that are: by interpolation or spread."""

import math

import pytest
import torch

import raysae
from raysae.activations.synthetic import SuperpositionWorld, write_synthetic_store
from raysae.config import parse_recipe
from raysae.pipeline.carrying import carried_layers
from raysae.pipeline.preflight import preflight
from raysae.records.tables import read_table
from raysae.sae.spread import participation_ratio
from raysae.sweep.selection.carrying import carried_between, scaled_by


def recipe(place, carry="layers", swept=(0, 3), **atlas):
    if not (place / "s").exists():
        world = SuperpositionWorld(d_in=8, atoms=16)
        write_synthetic_store(place / "s", world, 600, validation=0.2, test=0.0, sites=4)
    return {
        "name": "carried", "store": str(place / "s"), "runs_dir": str(place / "runs"), "source": None,
        "sweep": {
            "sampler": "list", "configs": [{"sae.d_sae": 16, "sae.k": k} for k in (1, 4)],
            "per_layer": list(swept), "controls": "none",
        },
        "training": {"epochs": 2, "batch_size": 64}, "records": {"mlflow": False},
        "atlas": {"carry": carry, **atlas}, "select": {"rule": "max_ev"},
    }  # fmt: skip


def test_between_two_swept_layers_the_config_is_their_geometric_mean():
    swept = {0: (64, 2), 4: (256, 32)}
    assert [carried_between(swept, layer) for layer in (0, 2, 4, 9)] == [
        (64, 2), (128, 8), (256, 32), (256, 32),
    ]  # fmt: skip
    assert carried_between({3: (64, 8)}, 0) == (64, 8)
    assert carried_between({0: (4, 4), 2: (512, 4)}, 1) == (45, 4)


def test_k_follows_the_spread_within_the_dictionary():
    assert scaled_by(8, 0.5, 64) == 4 and scaled_by(8, 100.0, 64) == 64
    assert scaled_by(8, 0.01, 64) == 1 and scaled_by(8, math.nan, 64) == 8


def test_the_spread_is_the_number_of_equal_directions():
    x = torch.randn(20_000, 6, generator=torch.Generator().manual_seed(0))
    assert participation_ratio(x) == pytest.approx(6, rel=0.01)
    assert participation_ratio(x[:, :1] * torch.ones(6)) == pytest.approx(1)
    assert math.isnan(participation_ratio(torch.ones(5, 3)))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sweep": {}, "atlas": {"carry": "spread"}}, "name the layers to sweep"),
        ({"sweep": {"per_layer": "all"}, "atlas": {"carry": "layers"}}, "per_layer is all"),
        ({"sweep": {"per_layer": [0]}, "atlas": {"carry": "layers", "enabled": False}}, "give up"),
    ],
)
def test_what_cannot_be_carried_is_refused(changes, words):
    with pytest.raises(raysae.UserError, match=words):
        parse_recipe(changes)


def test_layers_are_checked_before_work(tmp_path):
    def left(**changes):
        own = parse_recipe(recipe(tmp_path, **changes))
        return carried_layers(own, {"layer-00": preflight(own.of_layer(0))})

    assert left() == [1, 2] and left(carry="same") == [] and left(layers=[0, 1]) == [1]
    with pytest.raises(raysae.UserError, match="names every layer"):
        left(layers=[0, 3])
    with pytest.raises(raysae.UserError, match="no layer 9"):
        left(layers=[9])


@pytest.mark.long
@pytest.mark.parametrize("carry", ["layers", "spread"])
def test_every_layer_has_an_atlas_and_is_in_the_table(connected_ray, tmp_path, carry):
    result = raysae.sweep(recipe(tmp_path, carry))
    assert result.failures == []
    rows = {row["layer"]: row for row in read_table(result.table)}
    assert sorted(rows) == [f"layer-0{layer}" for layer in range(4)]
    assert all(row["atlas.sites"] == 1 for row in rows.values())
    assert rows["layer-01"]["trials"] == 0 and "d_sae 16, k" in rows["layer-01"]["config"]
    swept = {rows[f"layer-0{layer}"]["config"] for layer in (0, 3)}
    if carry == "layers" and len(swept) == 1:
        assert (
            result.results["layer-01"].run.recipe.sae.k
            == result.results["layer-02"].run.recipe.sae.k
        )
    assert "layer-02" in result.page.read_text()
    assert raysae.sweep(tmp_path / "runs" / "carried" / "config.yaml").rows == result.rows
