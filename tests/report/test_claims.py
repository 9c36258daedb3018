"""What is said of positions and layers is what the figures say, with its spread, or nothing."""

import random

import numpy as np
import pytest
from scipy import stats

from raysae.records.rows import SiteRow
from raysae.report.claims import (
    claims_of,
    extremes_of,
    in_brief,
    paired_interval,
    welch_interval,
)
from tests.report.atlases import atlas


def lead(rows, kind):
    """The comparisons of a kind in explained variance."""
    return [
        claim
        for claim in claims_of(rows)
        if claim.kind == kind and claim.metric.name == "explained_variance"
    ]


def test_welchs_interval_is_scipys():
    first, second = [0.9, 0.95, 0.97, 0.91], [0.8, 0.7, 0.95]
    expected = stats.ttest_ind(first, second, equal_var=False).confidence_interval(0.95)
    assert welch_interval(first, second) == pytest.approx(tuple(expected))


def test_the_paired_interval_is_scipys():
    first, second = np.array([0.9, 0.95, 0.97, 0.91]), np.array([0.8, 0.7, 0.95, 0.92])
    expected = stats.ttest_rel(first, second).confidence_interval(0.95)
    assert paired_interval(list(first - second)) == pytest.approx(tuple(expected))


def test_a_clear_difference_of_odd_and_even_positions_is_told_with_its_figures():
    noise = random.Random(1)
    rows = atlas(12, range(6), ev=lambda _, at: 0.95 - 0.1 * (at % 2) + noise.gauss(0, 0.005))
    (claim,) = lead(rows, "parity")
    even = [row["explained_variance"] for row in rows if int(row.position) % 2 == 0]
    assert claim.first.n == claim.second.n == 36
    assert claim.first.mean == pytest.approx(np.mean(even))
    assert claim.first.sd == pytest.approx(np.std(even, ddof=1))
    assert claim.clear and claim.verdict == "higher"
    low, high = claim.interval
    assert low < claim.difference < high and claim.difference == pytest.approx(0.1, abs=0.01)
    assert claim.sentence.startswith("Explained variance is higher at even positions (0.9")
    assert "95% CI 0." in claim.sentence and "Welch's t over 3 and 3 positions" in claim.sentence


def test_layers_that_differ_are_no_reason_to_tell_positions_apart():
    (claim,) = lead(atlas(12, range(6)), "parity")
    assert claim.verdict == "no clear difference" and "no clear difference" in claim.sentence
    assert claim.interval[0] < 0 < claim.interval[1] and "\N{MINUS SIGN}" in claim.interval_text


def test_one_position_that_stands_out_does_not_speak_for_all_even_ones():
    """Over the sites this difference would be clear: twelve sites of one position are not twelve."""
    rows = atlas(12, range(6), ev=lambda layer, at: (0.99 if at == 0 else 0.9) - layer / 1000)
    (claim,) = lead(rows, "parity")
    assert not claim.clear


def test_thirds_of_the_layers_are_compared():
    early, *_ = lead(atlas(12, range(6), ev=lambda layer, at: 0.99 - layer / 100), "layers")
    assert (early.first.name, early.second.name) == ("early layers 0–3", "late layers 8–11")
    assert early.verdict == "higher" and early.difference == pytest.approx(0.08)
    names = [
        (claim.first.name[:5], claim.second.name[:5]) for claim in lead(atlas(7, [0]), "layers")
    ]
    assert names == [("early", "late "), ("early", "middl"), ("middl", "late ")]


def test_the_first_and_the_last_position_are_compared_at_each_layer():
    rows = atlas(8, [0, 1, -1], ev=lambda layer, at: 0.9 - layer / 20 - 0.01 * (at == -1))
    (claim,) = lead(rows, "ends")
    assert claim.first.name == "the first position (0)" and "(-1)" in claim.second.name
    assert claim.clear and claim.difference == pytest.approx(0.01)
    assert "paired t over 8 layers, 8 of them with the same sign" in claim.sentence


def test_a_site_without_sae_is_not_a_zero():
    whole, holed = (
        lead(atlas(12, range(6), holes=holes, ev=lambda layer, at: 0.9 + at / 1000), "parity")[0]
        for holes in ((), {(3, 2), (4, 2)})
    )
    assert holed.first.n == whole.first.n - 2
    assert holed.first.mean == pytest.approx(whole.first.mean)
    assert "not all with the same number of sites" in holed.basis
    gone = {(layer, 4) for layer in range(12)}
    assert lead(atlas(12, range(6), holes=gone), "parity")[0].first.n == 24


def test_named_positions_are_neither_odd_nor_first():
    rows = atlas(12, ["all", "numbers", "operators"])
    assert {claim.kind for claim in claims_of(rows)} == {"layers"}
    assert not lead(atlas(4, [0, 1, -1, -2]), "parity"), "counted from both ends"
    assert lead(atlas(4, [0, 1, 2, 3, "all"]), "parity")[0].first.n == 8


@pytest.mark.parametrize(
    "rows",
    [
        [],
        atlas(1, [0]),
        atlas(1, ["all"]),
        atlas(3, [0, 1], holes={(layer, at) for layer in range(3) for at in (0, 1)}),
        [SiteRow(layer, "0", "done", "", {"explained_variance": 0.9}) for layer in range(6)],
        [SiteRow(0, "0", "done", "", {"explained_variance": float("nan"), "mse": None})],
    ],
)
def test_nothing_is_said_of_nothing(rows):
    assert claims_of(rows) == extremes_of(rows) == in_brief(rows) == []


def test_too_few_layers_have_no_interval_and_no_sentence_on_the_console():
    rows = atlas(3, range(4))
    assert all(claim.verdict == "too few to tell" for claim in lead(rows, "layers"))
    assert all("no interval, since" in claim.sentence for claim in lead(rows, "layers"))
    assert not any("layers 0" in line or "no interval" in line for line in in_brief(rows))


def test_best_and_worst_follow_the_metrics_direction():
    rows = atlas(6, range(4), ev=lambda layer, at: 0.9 - layer / 100 - at / 1000)
    found = {one.metric.name: one for one in extremes_of(rows)}
    assert "l0" not in found, "it is the same everywhere"
    best = found["explained_variance"]
    assert (best.best[0].layer, best.worst[0].layer) == (0, 5)
    assert "best (highest) at layer 0 position 0 (0.9000)" in best.sentence
    assert found["mse"].best[0]["mse"] == min(row["mse"] for row in rows)
    few = extremes_of(atlas(1, [0, 1]))[0]
    assert len(few.best) == len(few.worst) == 1 and few.best[0] is not few.worst[0]


def test_each_hookpoint_is_told_apart():
    rows = atlas(6, range(4), hookpoint="mlp_out") + atlas(6, range(4), hookpoint="resid_post")
    assert {claim.hookpoint for claim in claims_of(rows)} == {"mlp_out", "resid_post"}
    assert all(claim.first.n <= 12 for claim in claims_of(rows))
    assert claims_of(rows)[0].sentence.startswith("At mlp_out, explained variance")
    assert 0 < len(in_brief(rows)) <= 8


def test_shares_differ_by_points():
    (claim,) = (
        claim
        for claim in claims_of(atlas(8, range(6)))
        if claim.kind == "parity" and claim.metric.name == "dead_fraction"
    )
    assert claim.difference_text.endswith(" points") and claim.interval_text.count("points") == 1
