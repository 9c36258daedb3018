"""The law of scaling: planted laws come back, others are refused in words."""

import math

import numpy as np
import pytest

from raysae.records.rows import TrialRow
from raysae.sweep.selection.scaling import (
    DRAWS,
    PARAMETERS,
    Law,
    bootstrapped,
    check,
    fit_law,
    interval,
    points_of,
    refusal,
    scaling_of,
)

PLANTED = Law(np.array([0.4, -0.45, -0.15, -0.02, -3.5, -0.3]))
SIZES, KS = (128, 256, 512, 1024), (4, 8, 16, 32)


def trial(number, d_sae, k, fvu, state="done"):
    return TrialRow(
        number, state, "", {"sae.variant": "topk", "sae.d_sae": d_sae, "sae.k": k},
        {"explained_variance": 1 - fvu},
    )  # fmt: skip


def grid(law, sizes=SIZES, ks=KS, noise=0.0, seed=0):
    random = np.random.default_rng(seed)
    pairs = [(n, k) for n in sizes for k in ks]
    return [
        trial(number, n, k, float(law(n, k)) * math.exp(noise * random.standard_normal()))
        for number, (n, k) in enumerate(pairs)
    ]


def test_a_planted_law_comes_back_and_foretells_larger_dictionaries():
    rows = grid(PLANTED.fvu)
    law = fit_law(points_of(rows))
    for n in (128, 2048, 4096):
        assert law.fvu(n, 8) == pytest.approx(float(PLANTED.fvu(n, 8)), rel=0.005)
    found = scaling_of(rows)
    assert found["refused"] is None and found["check"]["error"] < 0.005
    assert found["check"]["d_sae"] == 1024 and found["check"]["k"] == list(KS)
    assert [(one["d_sae"], one["k"]) for one in found["predictions"]] == [
        (n, k) for n in (2048, 4096) for k in KS
    ]
    assert set(found["law"]["parameters"]) == set(PARAMETERS)


def test_intervals_hold_the_truth_of_noisy_trials_and_are_repeatable():
    held = 0
    for seed in range(2):
        rows = grid(PLANTED.fvu, noise=0.02, seed=seed)
        points = points_of(rows)
        low, high = interval(bootstrapped(points, fit_law(points)), 2048, 8)
        held += low <= float(PLANTED.fvu(2048, 8)) <= high
        assert 0 < low < high < 2 * low
    assert held >= 1
    assert scaling_of(rows) == scaling_of(rows)
    assert 0 < scaling_of(rows)["law"]["draws"] <= DRAWS


def test_a_law_that_is_off_to_one_side_is_refused():
    def bent(n, k):
        """The planted law, but for the largest d_sae, which does better than it."""
        return PLANTED.fvu(n, k) * (0.93 if n == max(SIZES) else 1)

    checked = check(points_of(grid(bent)))
    assert 0.05 < checked.error < 0.1 and checked.bias == pytest.approx(checked.error)
    told = scaling_of(grid(bent))
    assert not told["predictions"] and "at twice that" in told["refused"]
    assert told["check"]["bias"] == checked.bias


def test_trials_that_follow_no_law_are_refused_with_the_error():
    def fallen(n, k):  # from 1024 on the dictionary holds every atom
        return PLANTED.fvu(n, k) * (0.4 if n == 1024 else 1)

    found = scaling_of(grid(fallen))
    assert "1024 is" in found["refused"] and "do not follow it" in found["refused"]
    assert found["predictions"] == [] and found["check"]["error"] > 0.5


@pytest.mark.parametrize(
    ("sizes", "ks", "words"),
    [
        ((), (), "no finished trial has a K"),
        ((256,), (4,), "all 1 trials have one d_sae, 256"),
        ((256,), KS, "all 4 trials have one d_sae, 256"),
        (SIZES, (4,), "all 4 trials have one K, 4"),
        ((128, 256), (4, 8), "4 trials are too few for a law of 6 parameters: it needs 10"),
        ((128, 256), (2, *KS), "have 2 values of d_sae; the law needs 3"),
        ((128, 256, 512, 1024), (4, 8), "8 trials are too few"),
        ((128, 256, 512, 1024), (4, 8, 16), None),
    ],
)
def test_what_no_law_can_be_fitted_to(sizes, ks, words):
    found = refusal(points_of(grid(PLANTED.fvu, sizes, ks)))
    assert found == words if words is None else words in found
    assert scaling_of(grid(PLANTED.fvu, sizes, ks))["predictions"] == [] or words is None


def test_few_trials_below_the_largest_are_refused():
    rows = grid(PLANTED.fvu, (128, 256), (4, 8))[:3] + grid(PLANTED.fvu, (512,), range(2, 9))
    assert "3 trials are left, too few" in refusal(points_of(rows))


def test_trials_without_a_variance_left_or_an_end_do_not_count():
    rows = grid(PLANTED.fvu)
    odd = [trial(90, 256, 4, 0.0), trial(91, 256, 4, -0.1), trial(92, 256, 4, math.nan)]
    odd += [trial(93, 256, 4, 0.5, "failed")]
    gated = {"sae.variant": "gated", "sae.d_sae": 256, "sae.l1_coefficient": 1.0}
    odd.append(TrialRow(94, "done", "", gated, {"explained_variance": 0.5}))
    assert len(points_of(rows + odd)) == len(rows)
    assert check(points_of(rows + odd)).error == check(points_of(rows)).error
