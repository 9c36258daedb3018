"""Plots of an atlas: of bounded pixels and bytes, whatever its shape; holes are seen."""

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.image import imread

from raysae.metrics import registered
from raysae.report.drawing import CHOICE_COLOUR
from raysae.report.grids import Grid, bounds
from raysae.report.heatmaps import heatmap
from raysae.report.profiles import has_profiles, profiles
from raysae.report.site_curves import MOST_CURVES, Curve, rule_of, sampled, site_curves
from tests.report.atlases import atlas

EV, MSE, L0 = (registered()[name] for name in ("explained_variance", "mse", "l0"))
WIDEST, TALLEST, LARGEST = 1600, 2000, 800_000
"""Pixels, pixels and bytes of a plot, at most."""


def size_of(file):
    """Width and height in pixels, after a check of the bounds."""
    height, width = imread(file).shape[:2]
    assert width <= WIDEST and height <= TALLEST and file.stat().st_size <= LARGEST
    return width, height


def red(file):
    """The number of pixels in the colour of sites without SAE."""
    pixels = imread(file)[..., :3]
    return int((np.abs(pixels - np.array(to_rgb(CHOICE_COLOUR))).sum(axis=2) < 0.05).sum())


@pytest.mark.parametrize(
    "layers, positions",
    [(1, range(30)), (24, ["all"]), (2, [0, 1]), (12, range(6)), (300, range(6)), (2, range(1000)),
     (4, [f"a_long_name_of_pattern_{at}" for at in range(40)]), (401, range(20))],
)  # fmt: skip
def test_a_heatmap_is_bounded_and_shows_its_holes(layers, positions, tmp_path):
    file, whole = tmp_path / "x.png", tmp_path / "whole.png"
    hole = (layers // 2, positions[len(positions) // 2])
    heatmap(atlas(layers, positions, holes={hole}), EV, "Explained variance", "store x", file)
    heatmap(atlas(layers, positions), EV, "Explained variance", "store x", whole)
    size_of(file)
    assert red(file) > 0 == red(whole)


def test_the_grid_has_holes_where_there_is_no_sae():
    rows = [
        row
        for row in atlas(4, [0, 1, "all"], holes={(1, 0)})
        if row.layer != 2 or row.position != "1"
    ]
    grid = Grid.of(rows, EV)
    assert grid.positions == ["0", "1", "all"] and grid.layers == [0, 1, 2, 3]
    assert np.argwhere(grid.missing).tolist() == [[1, 0], [2, 1]]
    assert np.isnan(grid.values[grid.missing]).all() and (grid.known > 0).all()


def test_a_value_that_is_not_defined_is_no_missing_sae():
    rows = atlas(3, [0, 1])
    rows[0].figures["mse"] = None
    grid = Grid.of(rows, MSE)
    assert grid.undefined.sum() == 1 and not grid.missing.any()


def test_sites_of_a_large_atlas_share_cells_and_holes_stay():
    rows = atlas(3, range(1000), holes={(1, 999)}, ev=lambda layer, at: at / 1000)
    cells = Grid.of(rows, EV).cells()
    assert cells.values.shape == (3, 250)
    assert cells.values[0, 0] == pytest.approx(np.mean([0, 1, 2, 3]) / 1000)
    assert np.argwhere(cells.missing).tolist() == [[1, 249]]


def test_a_scale_does_not_make_much_of_nothing():
    low, high, logarithmic = bounds(np.array([31.9, 32.0]), L0)
    assert high - low > 2 and not logarithmic
    assert bounds(np.array([0.98, 0.99]), EV) == (0.98, 0.99, False)
    assert bounds(np.array([0.001, 1.0]), MSE) == (0.001, 1.0, True)


@pytest.mark.parametrize(
    "layers, positions", [(2, [0, 1]), (300, range(6)), (3, ["a_long_name", "all"])]
)
def test_profiles_are_bounded(layers, positions, tmp_path):
    file = tmp_path / "x.png"
    rows = atlas(layers, positions, holes={(1, positions[0])}, stability=0.8)
    profiles(rows, "Profiles", "store x", file)
    size_of(file)
    assert not has_profiles(atlas(1, range(4))) and not has_profiles(atlas(4, [0]))


@pytest.mark.parametrize("sites", [1, 8, 1000])
def test_training_curves_are_bounded_in_number_and_size(sites, tmp_path):
    file, rows = tmp_path / "x.png", atlas(sites, [0])
    shown = sampled(rows)
    assert len(shown) == min(sites, MOST_CURVES)
    if sites > MOST_CURVES:
        values = [row["explained_variance"] for row in rows]
        assert shown[0]["explained_variance"] == min(values)
        assert shown[-1]["explained_variance"] == max(values)
        assert rule_of(len(shown), sites).startswith("24 of 1,000 sites, at even ranks")
    history = [
        {"tokens": 10, "explained_variance": None},
        {"tokens": 20, "explained_variance": 0.5},
    ]
    curves = [Curve(f"layer {row.layer}, position 0", history) for row in shown]
    site_curves([*curves[:-1], Curve("gone", [])] if sites > 1 else curves, sites, "store x", file)
    size_of(file)
