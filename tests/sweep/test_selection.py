"""The rules, on published and planted figures where the right choice is known."""

import pytest

from raysae.config import SelectConfig
from raysae.sweep.knee import find_knee
from raysae.sweep.selection import select

R3 = [
    (512, 150, 0.948, 0.041), (512, 100, 0.941, 0.260), (384, 75, 0.933, 0.365),
    (256, 75, 0.927, 0.266), (256, 50, 0.914, 0.438), (192, 40, 0.906, 0.396),
    (256, 30, 0.885, 0.590), (192, 20, 0.833, 0.766),
]  # fmt: skip
"""The published sweep R3: d_sae, K, explained variance, dead share."""

PLANTED = {
    64: (0.49, 0.57, 0.63, 0.69, 0.74, 0.80, 0.85),
    128: (0.64, 0.77, 0.82, 0.86, 0.88, 0.89, 0.89),
    256: (0.66, 0.79, 0.85, 0.89, 0.90, 0.91, 0.91),
}
"""Measured over a planted dictionary of 128 atoms, 3.9 active a row; columns are K."""
PLANTED_K = (2, 3, 4, 6, 8, 12, 16)


def row(number, d_sae, k, ev, dead=0.0, **more):
    return {
        "trial": number, "state": "done", "sae.variant": "topk", "sae.d_sae": d_sae, "sae.k": k,
        "explained_variance": ev, "l0": float(k), "dead_fraction": dead, "dead_fraction_validation": dead,
        "dead_window_tokens": 20_000, "mse": 1.0, "cosine": 0.9, **more,
    }  # fmt: skip


def trials(table):
    return [row(number, *entry) for number, entry in enumerate(table)]


def chosen(table, **settings):
    selection = select(trials(table), SelectConfig(**settings))
    number = selection["choice"]["trial"]
    return None if number is None else table[number][:2]


@pytest.mark.parametrize(
    ("settings", "config"),
    [
        ({"rule": "max_ev"}, (512, 150)),
        ({"rule": "ev_floor_then_min_dead"}, (512, 150)),
        ({"rule": "ev_floor_then_min_dead", "ev_floor": 0.92, "max_l0": 80}, (256, 75)),
        ({"rule": "parsimonious"}, (192, 40)),
        ({"rule": "parsimonious", "tolerance": 0.02}, (384, 75)),
        ({"rule": "parsimonious", "tolerance": 0.0}, (512, 150)),
        ({"rule": "parsimonious", "max_dead_fraction": 0.1}, (512, 150)),
    ],
)
def test_rules_on_a_published_sweep(settings, config):
    assert chosen(R3, **settings) == config


def test_parsimonious_prefers_the_smaller_dictionary_at_equal_l0():
    assert chosen([(256, 8, 0.9, 0), (64, 8, 0.89, 0), (512, 8, 0.9, 0)], rule="parsimonious") == (
        64,
        8,
    )


def test_every_rules_choice_is_written_down_with_a_reason():
    selection = select(trials(R3), SelectConfig())
    assert set(selection["choices"]) == {"parsimonious", "knee", "ev_floor_then_min_dead", "max_ev"}
    assert all(choice["reason"] for choice in selection["choices"].values())
    assert selection["choice"] == selection["choices"]["parsimonious"]
    assert len(selection["candidates"]) == 8


def test_the_knee_finds_the_planted_dictionary():
    grid = [(d, k, ev) for d, row in PLANTED.items() for k, ev in zip(PLANTED_K, row, strict=True)]
    knee = find_knee(grid)
    assert knee.d_sae == 128 and knee.k in (4, 6)
    scattered = find_knee(grid[::2])
    assert scattered.d_sae == 128 and scattered.k in (4, 6) and "surface" in scattered.reason


def test_a_straight_line_has_no_knee():
    line = [
        (d, k, 0.5 + 0.05 * i + 0.05 * j)
        for i, d in enumerate((64, 128, 256))
        for j, k in enumerate((4, 8, 16))
    ]
    knee = find_knee(line)
    assert knee.d_sae is None and "keeps rising" in knee.reason


@pytest.mark.parametrize(
    ("points", "words"),
    [
        ([(64, 2, 0.5), (64, 4, 0.6)], "only one d_sae"),
        ([(64, 2, 0.5), (128, 2, 0.6)], "only one K"),
        ([(64, 2, 0.5), (128, 4, 0.6), (256, 8, 0.7)], "too few"),
        ([(64 * 2**i, 2 * 2**i, 0.5) for i in range(6)], "one line"),
        ([(d, k, 0.9 - k / 100) for d in (64, 128) for k in (2, 4)], "does not rise"),
    ],
)
def test_too_little_to_go_by_is_said(points, words):
    knee = find_knee(points)
    assert knee.k is None and words in knee.reason


def test_failed_trials_are_no_candidates():
    rows = [
        row(0, 64, 4, 0.8),
        {**row(1, 64, 8, 0.9), "state": "failed", "explained_variance": None},
    ]
    selection = select(rows, SelectConfig(rule="max_ev"))
    assert selection["choice"]["trial"] == 0
    nothing = select([rows[1]], SelectConfig())
    assert nothing["choice"]["trial"] is None and "no finished trial" in nothing["choice"]["reason"]


def test_undefined_explained_variance_is_never_chosen():
    rows = [row(0, 64, 4, None), row(1, 64, 8, 0.1)]
    assert select(rows, SelectConfig(rule="max_ev"))["choice"]["trial"] == 1
