"""The search space: conditional keys, powers of two, points to try first, earlier trials, constraints."""

import pytest

from raysae.activations import open_store
from raysae.activations.synthetic import SuperpositionWorld, write_synthetic_store
from raysae.config import parse_recipe
from raysae.errors import UserError
from raysae.pipeline.estimate import configs_of, needs
from raysae.sweep.search.proposals import make_proposer
from raysae.sweep.search.space import Space
from raysae.training.memory import largest_d_sae, training_bytes
from tests.sweep.search.test_proposals import run

VARIANTS = {
    "sae.variant": {"choices": ["topk", "relu_l1"]},
    "sae.d_sae": {"low": 16, "high": 100, "powers_of_two": True},
    "sae.k": {"choices": [1, 2, 4]},
    "sae.l1_coefficient": {"low": 0.1, "high": 10.0, "log": True},
}


def recipe(**sweep):
    return parse_recipe({"sweep": {"trials": 10, **sweep}})


def test_a_key_that_a_variant_does_not_have_is_left_out():
    space = Space(recipe(space=VARIANTS))
    drawn = {"sae.variant": "topk", "sae.d_sae": 1, "sae.k": 2, "sae.l1_coefficient": 1.0}
    assert space.parameters(drawn) == {"sae.variant": "topk", "sae.d_sae": 32, "sae.k": 4}
    other = space.parameters({**drawn, "sae.variant": "relu_l1"})
    assert other == {"sae.variant": "relu_l1", "sae.d_sae": 32, "sae.l1_coefficient": 1.0}


def test_powers_of_two_are_the_values_between_the_ends():
    space = {
        "sae.d_sae": {"low": 16, "high": 100, "powers_of_two": True},
        "sae.k": {"choices": [1]},
    }
    configs = run_all(recipe(space=space, sampler="grid"))
    assert [config["sae.d_sae"] for config in configs] == [16, 32, 64]


def test_a_grid_over_variants_has_each_config_once():
    space = {**VARIANTS, "sae.l1_coefficient": {"choices": [1.0]}, "sae.d_sae": {"choices": [16]}}
    configs = run_all(recipe(space=space, sampler="grid"))
    assert [config["sae.variant"] for config in configs] == ["topk"] * 3 + ["relu_l1"]


def run_all(recipe):
    proposer = make_proposer(recipe)
    return [proposer.propose(number, {}) for number in range(proposer.trials)]


@pytest.mark.parametrize("sampler", ["tpe", "gp", "nsga2", "random"])
def test_the_recipes_points_come_first(sampler):
    first = [{"sae.d_sae": 256, "sae.k": 2}, {"sae.k": 32}]
    proposals = run(recipe(sampler=sampler, first=first), 1, 0)
    assert proposals[0] == {"sae.d_sae": 256, "sae.k": 2}
    assert proposals[1]["sae.k"] == 32 and proposals[1]["sae.d_sae"] >= 32
    assert len(proposals) == 10


def test_nsga2_is_reproducible_and_steered():
    down = [{"metric": "l0", "goal": "minimize"}]
    settings = {"sampler": "nsga2", "trials": 20, "objectives": down, "proposal_lag": 3}
    wanted = run(recipe(**settings), 1, 0)
    assert run(recipe(**settings), 3, 1) == wanted
    up = run(recipe(**{**settings, "objectives": [{"metric": "l0", "goal": "maximize"}]}), 1, 0)
    assert sum(p["sae.k"] for p in wanted[8:]) < sum(p["sae.k"] for p in up[8:])


def test_constraints_steer_the_search():
    up = [{"metric": "explained_variance", "goal": "maximize"}]
    settings = {"trials": 20, "objectives": up, "space": {"sae.k": {"low": 1, "high": 32}}}
    free = run(recipe(**settings), 1, 0)
    bound = run(recipe(**settings, constraints=[{"metric": "l0", "at_most": 6}]), 1, 0)
    assert sum(p["sae.k"] <= 6 for p in bound) > sum(p["sae.k"] <= 6 for p in free)


def test_earlier_trials_steer_from_the_first_proposal():
    down = {"objectives": [{"metric": "l0", "goal": "minimize"}], "startup_trials": 4, "trials": 3}
    space = {"sae.k": {"low": 1, "high": 64}}
    known = [({"sae.k": k}, {"l0": float(k)}) for k in (2, 3, 4, 40, 50, 60, 63)]
    outside = [({"sae.k": 999}, {"l0": 1.0}), ({"sae.d_sae": 5}, {"l0": 1.0})]
    proposer = make_proposer(recipe(space=space, **down), [*known, *outside])
    assert proposer.learnt == len(known)
    cold = make_proposer(recipe(space=space, **down))
    warm = [proposer.propose(0, {})["sae.k"], proposer.propose(1, {})["sae.k"]]
    assert max(warm) < 40
    assert warm != [cold.propose(0, {})["sae.k"], cold.propose(1, {})["sae.k"]]


def test_without_reproducibility_nothing_waits():
    loose = recipe(reproducible=False)
    assert make_proposer(loose).lag > loose.sweep.trials
    assert len(run(loose, 4, 0)) == 10


@pytest.mark.parametrize(
    ("sweep", "words"),
    [
        ({"first": [{"sae.k": 3}]}, r"sweep.first\[0\]: sae.k 3 is not in sweep.space"),
        ({"first": [{"training.lr": 1.0}]}, "training.lr is not in sweep.space"),
        ({"first": [{"sae.d_sae": 32, "sae.k": 32}, {"sae.d_sae": 16, "sae.k": 32}]}, "16"),
        ({"space": {"sae.variant": {"choices": ["topk", "gatd"]}}}, "variant is unknown"),
        ({"space": {"sae.l1_coefficient": {"choices": [1.0]}}}, "topk has no such setting"),
    ],
)
def test_what_cannot_be_tried_is_refused(sweep, words):
    with pytest.raises(UserError, match=words):
        make_proposer(recipe(**sweep))


@pytest.mark.parametrize(
    ("sweep", "words"),
    [
        ({"space": {"sae.k": {"low": 9, "high": 15, "powers_of_two": True}}}, "no power of two"),
        ({"constraints": [{"metric": "l0"}]}, "at_most or at_least"),
        ({"objectives": [{"metric": "stability", "goal": "maximize"}]}, "seeds_per_trial is 1"),
        ({"sampler": "grid", "first": [{"sae.k": 1}]}, "first is for a sampler"),
        ({"early_stopping": "asha"}, "single one"),
        ({"sites": [{"layer": 1, "position": -1}], "layer": 1}, "instead of layer"),
    ],
)
def test_what_contradicts_itself_is_refused(sweep, words):
    with pytest.raises(UserError, match=words):
        recipe(**sweep)


MEMORY = [{"metric": "training_bytes", "at_most": 400_000}]


@pytest.mark.parametrize("sampler", ["random", "tpe", "grid"])
def test_what_takes_more_memory_than_is_allowed_is_not_tried(sampler, tmp_path):
    sizes = [16, 64, 256, 1024]
    space = {"sae.d_sae": {"choices": sizes}, "sae.k": {"choices": [1, 2, 4]}}
    limited = recipe(space=space, sampler=sampler, constraints=MEMORY, trials=12)
    largest = largest_d_sae(32, 400_000, limited.training)
    assert training_bytes(32, largest, limited.training) <= 400_000
    assert training_bytes(32, largest + 1, limited.training) > 400_000
    proposer, outcomes, tried = make_proposer(limited, d_in=32), {}, []
    for number in range(proposer.trials):
        parameters = proposer.propose(number, outcomes)
        if parameters is None:  # all that may be tried has been
            break
        tried.append(parameters["sae.d_sae"])
        outcomes[number] = {"explained_variance": tried[-1] / 1024, "training_bytes": 0}
    assert set(tried) == {size for size in sizes if size <= largest} < set(sizes)
    world = SuperpositionWorld(d_in=32, atoms=40, p=0.05)
    write_synthetic_store(tmp_path / "store", world, 100, validation=0.2, test=0.0)
    assert {one["sae.d_sae"] for one in configs_of(limited, d_in=32)} <= set(tried)
    wanted = needs(limited, open_store(tmp_path / "store"), 0)
    assert wanted.largest[0].d_sae == (max(tried) if sampler == "grid" else largest)
    assert training_bytes(32, wanted.largest[0].d_sae, limited.training) <= 400_000


def test_a_limit_that_leaves_nothing_is_refused():
    tight = [{"metric": "training_bytes", "at_most": 1000}]
    with pytest.raises(UserError, match=r"nothing valid.*width 32 takes .* training_bytes <= 1000"):
        make_proposer(recipe(constraints=tight), d_in=32)
