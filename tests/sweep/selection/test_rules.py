"""The rules, on published and planted figures where the right choice is known."""

from typing import get_args

import pytest

from raysae.config.search import Constraint, Rule, SelectConfig
from raysae.records.rows import TrialRow
from raysae.sweep.selection.knee import find_knee
from raysae.sweep.selection.rules import select

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
AGREEMENT = {
    64: (0.74, 0.76, 0.73, 0.64, 0.63, 0.47, 0.41),
    128: (0.94, 0.93, 0.92, 0.86, 0.85, 0.81, 0.57),
    256: (1.0, 1.0, 0.99, 0.80, 0.71, 0.69, 0.61),
}
"""How two seeds agreed there."""


def row(number, d_sae, k, ev, dead=0.0, **more):
    columns = {
        "trial": number, "state": "done", "sae.variant": "topk", "sae.d_sae": d_sae, "sae.k": k,
        "explained_variance": ev, "l0": float(k), "dead_fraction": dead, "dead_fraction_validation": dead,
        "dead_window_tokens": 20_000, "mse": 1.0, "cosine": 0.9, **more,
    }  # fmt: skip
    return TrialRow.of_columns(columns)


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
    assert set(selection["choices"]) == set(get_args(Rule))
    assert all(choice["reason"] for choice in selection["choices"].values())
    assert selection["choice"] == selection["choices"]["auto"]
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
        TrialRow.of_columns({**row(1, 64, 8, 0.9), "state": "failed", "explained_variance": None}),
    ]
    selection = select(rows, SelectConfig(rule="max_ev"))
    assert selection["choice"]["trial"] == 0
    nothing = select([rows[1]], SelectConfig())
    assert nothing["choice"]["trial"] is None and "no finished trial" in nothing["choice"]["reason"]


def test_undefined_explained_variance_is_never_chosen():
    rows = [row(0, 64, 4, None), row(1, 64, 8, 0.1)]
    assert select(rows, SelectConfig(rule="max_ev"))["choice"]["trial"] == 1


def planted_rows(agreement=AGREEMENT):
    rows = []
    for d, evs in PLANTED.items():
        for k, ev, agreed in zip(PLANTED_K, evs, agreement[d], strict=True):
            rows.append(row(len(rows), d, k, ev, stability=agreed))
    return rows


def test_the_stable_knee_is_the_planted_dictionary_and_its_activity():
    selection = select(planted_rows(), SelectConfig(rule="stable_knee"))
    chosen = planted_rows()[selection["choice"]["trial"]]
    assert (chosen["sae.d_sae"], chosen["sae.k"]) == (128, 4)
    assert "agreement" in selection["choice"]["reason"]


def test_without_a_stable_knee_it_says_so():
    one_seed = select(trials(R3), SelectConfig(rule="stable_knee"))["choice"]
    assert one_seed["trial"] is None and "seeds_per_trial" in one_seed["reason"]
    falling = {d: tuple(0.9 - 0.1 * place for place in range(7)) for d in PLANTED}
    choice = select(planted_rows(falling), SelectConfig(rule="stable_knee"))["choice"]
    assert choice["trial"] is None and "from the first K on" in choice["reason"]
    level = dict.fromkeys(PLANTED, (0.9,) * 7)
    choice = select(planted_rows(level), SelectConfig(rule="stable_knee"))["choice"]
    assert choice["trial"] is None and "does not fall" in choice["reason"]


def test_pareto_names_the_front_and_leaves_the_choice():
    table = [(64, 4, 0.8), (64, 8, 0.9), (64, 16, 0.85), (128, 4, 0.7)]
    selection = select(trials(table), SelectConfig(rule="pareto"))
    assert selection["pareto"]["front"] == [0, 1]
    assert selection["choice"]["trial"] is None and "yours" in selection["choice"]["reason"]
    by_hand = select(trials(table), SelectConfig(rule="pareto", trial=1))
    assert by_hand["choice"]["trial"] == 1
    missing = select(trials(table), SelectConfig(trial=9))["choice"]
    assert missing["trial"] is None and "done are 0, 1, 2, 3" in missing["reason"]


def test_constraints_of_the_search_bind_the_choice():
    dead = Constraint(metric="dead_fraction", at_most=0.3)
    selection = select(trials(R3), SelectConfig(rule="max_ev"), [dead])
    assert sorted(row["trial"] for row in selection["candidates"]) == [0, 1, 3]
    assert selection["excluded_by_constraints"] == [2, 4, 5, 6, 7]
