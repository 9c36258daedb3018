"""Proposals: valid, never twice, and blind to the order in which results arrive."""

import random

import pytest

from raysae.config import Recipe, parse_recipe
from raysae.errors import UserError
from raysae.sweep.search.proposals import make_proposer
from raysae.sweep.search.searcher import OrderedSearcher

SPACE = {"sae.d_sae": {"choices": [16, 64, 256]}, "sae.k": {"low": 1, "high": 128, "log": True}}


def recipe(**sweep):
    return parse_recipe({"sweep": {"trials": 12, "space": SPACE, **sweep}})


def outcome(parameters):
    if parameters["sae.k"] == 1:
        return {"failed": "it raised"}
    return {"explained_variance": 1 - 1 / parameters["sae.k"], "l0": float(parameters["sae.k"])}


def run(recipe, at_once, shuffle, gang=1):
    """Drive the searcher as Tune would, with results arriving in a random order."""
    searcher, rng = OrderedSearcher(make_proposer(recipe), gang=gang), random.Random(shuffle)
    running, proposed, count = {}, {}, 0
    while True:
        while len(running) < at_once:
            suggestion = searcher.suggest(f"id{count}")
            if not isinstance(suggestion, dict):
                break
            running[f"id{count}"] = suggestion
            proposed |= {asked["trial"]: asked["parameters"] for asked in suggestion["gang"]}
            count += 1
        if not running:
            return [proposed[number] for number in sorted(proposed)]
        ended = rng.choice(sorted(running))
        reports = [
            {"trial": asked["trial"], "done": True, **outcome(asked["parameters"])}
            for asked in running.pop(ended)["gang"]
        ]
        searcher.on_trial_complete(ended, {"gang": reports})


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_timing_and_concurrency_never_show(sampler):
    wanted = run(recipe(sampler=sampler, proposal_lag=3), at_once=1, shuffle=0)
    assert len(wanted) == 12
    for at_once in (1, 2, 3):
        for shuffle in range(3):
            assert run(recipe(sampler=sampler, proposal_lag=3), at_once, shuffle) == wanted
    for gang in (2, 3):
        assert run(recipe(sampler=sampler, proposal_lag=3), 1, 0, gang) == wanted


def test_gp_repeats_whatever_the_timing():
    short = parse_recipe(
        {"sweep": {"trials": 5, "space": SPACE, "sampler": "gp", "startup_trials": 2}}
    )
    assert run(short, at_once=2, shuffle=1) == run(short, at_once=1, shuffle=0)


def test_the_seed_decides():
    first = run(recipe(), 1, 0)
    other = parse_recipe({"seed": 1, "sweep": {"trials": 12, "space": SPACE}})
    assert run(other, 1, 0) != first


def test_results_steer_tpe():
    """With the reward turned round, proposals after the random start differ."""
    up = recipe(objectives=[{"metric": "l0", "goal": "maximize"}], trials=25)
    down = recipe(objectives=[{"metric": "l0", "goal": "minimize"}], trials=25)
    high, low = run(up, 1, 0), run(down, 1, 0)
    assert high[:4] == low[:4]

    def mean_k(proposals):
        return sum(p["sae.k"] for p in proposals[6:]) / len(proposals[6:])

    assert mean_k(high) > 1.25 * mean_k(low)


def test_every_proposal_is_valid_and_new():
    proposals = run(recipe(), 2, 0)
    assert all(p["sae.k"] <= p["sae.d_sae"] for p in proposals)
    assert len({tuple(p.values()) for p in proposals}) == len(proposals)


def test_a_space_that_runs_out_ends_the_sweep():
    tiny = {"sae.d_sae": {"choices": [2, 4]}, "sae.k": {"choices": [1, 3]}}
    proposals = run(recipe(space=tiny), 2, 0)
    assert sorted(tuple(p.values()) for p in proposals) == [(2, 1), (4, 1), (4, 3)]


def test_a_grid_is_every_valid_combination():
    space = {"sae.d_sae": {"choices": [8, 32]}, "sae.k": {"choices": [4, 16]}}
    proposals = run(recipe(sampler="grid", space=space), 2, 0)
    assert [tuple(p.values()) for p in proposals] == [(8, 4), (32, 4), (32, 16)]


def test_a_list_is_taken_as_written():
    configs = [{"sae.d_sae": 512, "sae.k": 150}, {"sae.d_sae": 192, "sae.k": 20}]
    listed = parse_recipe({"sweep": {"sampler": "list", "configs": configs}})
    assert run(listed, 1, 0) == configs


@pytest.mark.parametrize(
    ("sweep", "words"),
    [
        ({"space": {"sae.d_sae": {"choices": [4]}, "sae.k": {"choices": [8]}}}, "nothing valid"),
        ({"space": {"sae.kk": {"choices": [8]}}}, "did you mean sae.k"),
        ({"space": {"sweep.trials": {"choices": [8]}}}, "can be searched"),
        ({"sampler": "list", "configs": [{"sae.d_sae": 4, "sae.k": 8}]}, "above d_sae"),
        (
            {"sampler": "list", "trials": 1, "configs": [{"sae.k": 8}, {"sae.k": 9}]},
            "holds 2 configs",
        ),
        (
            {
                "sampler": "grid",
                "trials": 2,
                "space": {"sae.d_sae": {"choices": [64, 128, 256]}, "sae.k": {"choices": [1]}},
            },
            "holds 3 configs",
        ),
    ],
)
def test_what_cannot_be_searched_is_refused(sweep, words):
    with pytest.raises(UserError, match=words):
        make_proposer(parse_recipe({"sweep": sweep}))


def test_the_quickstart_proposes():
    assert len(run(Recipe(), 2, 0)) == 8
