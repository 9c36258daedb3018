"""The rule ``auto``: its choice where the truth is known, its intervals, and when it has no ground."""

import pytest

from raysae.config.search import SelectConfig
from raysae.records.rows import TrialRow
from raysae.sweep.selection.rules import select
from tests.sweep.selection.test_rules import AGREEMENT, PLANTED, PLANTED_K, R3, row, trials

KS = (1, 2, 3, 4, 6, 8, 12, 16, 32)
WORLD = {
    "explained_variance": (0.570, 0.798, 0.904, 0.933, 0.955, 0.964, 0.969, 0.971, 0.976),
    "stability": (0.765, 0.843, 0.943, 0.925, 0.895, 0.893, 0.864, 0.827, 0.582),
    "decoder_cosine_mean_abs": (
        0.0781, 0.0791, 0.0805, 0.0774, 0.0702, 0.0684, 0.0680, 0.0689, 0.0732,
    ),
}  # fmt: skip
"""A hard world of 256 atoms, of which 6.6 fire in a row, at d_sae 256; K 6 has the best F1."""


def world(**changes):
    """Two seeds at three sizes, with the world's figures at 256 and what a sweep finds beside it."""
    rows = []
    for d_sae, less, dead in ((128, 0.12, 0.0), (256, 0.0, 0.02), (512, -0.004, 0.4)):
        for place, k in enumerate(KS):
            figures = {name: values[place] for name, values in WORLD.items()}
            ev = figures.pop("explained_variance") - less
            noise = {"explained_variance_seeds": 0.002, "decoder_cosine_mean_abs_seeds": 0.0003}
            more = {**figures, **noise, "stability_chance": 0.3, "tokens": 1000}
            rows.append(row(len(rows), d_sae, k, ev, dead, **{**more, **changes}))
    return rows


def choice_of(rows, **settings):
    return select(rows, SelectConfig(**settings))["choice"]


def config(rows, choice):
    (chosen,) = [one for one in rows if one.trial == choice["trial"]]
    return chosen.d_sae, chosen.k


def test_it_is_between_what_errs_low_and_what_errs_high():
    choice = choice_of(world())
    assert config(world(), choice) == (256, 6)
    low, high = choice["interval"]["sae.k"]
    assert low <= 6 <= high and choice["interval"]["sae.d_sae"] == [128, 512]
    said = {one["indicator"]: one["value"] for one in choice["indicators"] if one["of"] == "sae.k"}
    assert said["agreement of seeds"] == 4 and said["cosine of decoder rows"] == 8
    assert "K 3 to 8, d_sae 128 to 512 (" in choice["reason"]


def test_it_is_the_default_and_the_others_are_there():
    selection = select(world(), SelectConfig())
    assert selection["rule"] == "auto" and selection["choice"] == selection["choices"]["auto"]
    assert set(selection["choices"]["parsimonious"]) == {"trial", "reason"}


def test_the_planted_dictionary_is_found():
    rows = []
    for d_sae, evs in PLANTED.items():
        for k, ev, agreed in zip(PLANTED_K, evs, AGREEMENT[d_sae], strict=True):
            rows.append(row(len(rows), d_sae, k, ev, stability=agreed))
    choice = choice_of(rows)
    assert config(rows, choice) == (128, 4)


def one_seed(rows):
    dropped = ("stability", "stability_chance", "explained_variance_seeds")
    return [
        TrialRow.of_columns({key: value for key, value in one.items() if key not in dropped})
        for one in rows
    ]


def test_with_one_seed_it_says_what_a_second_costs():
    rows = one_seed(world())
    choice = choice_of(rows)
    assert config(rows, choice)[0] == 256 and choice["sure"] in ("likely", "unsure")
    assert "sweep.seeds_per_trial=2" in choice["why"] and "27,000 training tokens" in choice["why"]


def test_half_dead_latents_are_not_chosen_where_fewer_explain_the_same():
    rows = [
        row(0, 256, 4, 0.974, 0.555, seconds=4.0), row(1, 64, 8, 0.973, 0.0, seconds=2.0),
        row(2, 128, 8, 0.976, 0.2), row(3, 32, 16, 0.95), row(4, 64, 2, 0.90), row(5, 256, 1, 0.80),
        row(6, 128, 16, 0.98, 0.1), row(7, 32, 1, 0.70),
    ]  # fmt: skip
    choice = choice_of(rows)
    assert config(rows, choice)[0] <= 128
    chosen = rows[choice["trial"]]
    assert chosen.dead_fraction < 0.5 and chosen.explained_variance > 0.9


def test_one_trial_is_nothing_to_compare():
    choice = choice_of([row(0, 64, 4, 0.8)])
    assert choice["trial"] == 0 and choice["fallback"] == "parsimonious"
    assert "one config alone was finished" in choice["reason"] and choice["interval"] is None


def test_degenerate_trials_leave_nothing():
    rows = [row(0, 64, 4, None), row(1, 64, 8, None)]
    choice = choice_of(rows)
    assert choice["trial"] is None and "no finished trial" in choice["reason"]


def test_one_k_leaves_d_sae_to_the_knee():
    rows = [one for one in world() if one.k == 6]
    choice = choice_of(rows)
    assert config(rows, choice) == (256, 6)
    assert choice["interval"]["sae.k"] == [6, 6]
    assert any(said["says"] == "only one K was tried" for said in choice["indicators"])


def test_one_d_sae_leaves_k():
    rows = [row(place, 256, one.k, one.explained_variance, **{
        name: one[name] for name in ("stability", "decoder_cosine_mean_abs")
    }) for place, one in enumerate(one for one in world() if one.d_sae == 256)]  # fmt: skip
    choice = choice_of(rows)
    assert config(rows, choice) == (256, 6)
    assert any(said["says"] == "only one d_sae was tried" for said in choice["indicators"])


def test_what_a_k_far_too_large_gains_is_no_bend():
    """A trained world of 256 atoms, 5.6 active: F1 is best at K 4; explained variance gains once more
    where codes are dense."""
    evs = (0.3380, 0.5437, 0.6781, 0.7628, 0.8290, 0.8502, 0.8681, 0.8798, 0.9032, 0.9408)
    ks = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
    rows = [row(n, 256, k, ev) for n, (k, ev) in enumerate(zip(ks, evs, strict=True))]
    choice = choice_of(rows)
    assert config(rows, choice) == (256, 4) and choice["interval"]["sae.k"] == [3, 6]
    (bend,) = [one for one in choice["indicators"] if one["indicator"].startswith("bend")]
    assert bend["value"] == 4


def test_seeds_that_differ_more_than_configs_are_said_and_the_smallest_is_taken():
    rows = [
        row(place, d_sae, k, 0.9 + place / 1000, stability=0.5, explained_variance_seeds=0.05)
        for place, (d_sae, k) in enumerate([(128, 8), (128, 4), (64, 8), (64, 4)])
    ]
    choice = choice_of(rows)
    assert config(rows, choice) == (64, 4) and choice["sure"] == "unsure"
    assert "no two can be told apart" in choice["reason"]


def test_seeds_that_agree_by_chance_say_nothing():
    choice = choice_of(world(stability=0.34))
    (said,) = [one for one in choice["indicators"] if one["indicator"] == "agreement of seeds"]
    assert said["value"] is None and "hardly above chance" in said["says"]


def test_variants_without_k_fall_back_by_name():
    rows = [
        TrialRow.of_columns(
            {
                **{key: value for key, value in one.items() if key != "sae.k"},
                "sae.variant": "jumprelu", "sae.l0_coefficient": 1.0,
            }
        )
        for one in trials(R3)
    ]  # fmt: skip
    choice = choice_of(rows)
    assert choice["fallback"] == "parsimonious" and "no K in jumprelu" in choice["reason"]


def test_configs_on_a_line_are_no_ground():
    rows = [row(place, 64 * 2**place, 2 * 2**place, 0.5 + place / 10) for place in range(6)]
    choice = choice_of(rows)
    assert choice["fallback"] == "parsimonious" and "one line" in choice["reason"]


def test_rising_to_the_end_is_an_open_interval():
    rows = [
        row(len(PLANTED_K) * i + j, d_sae, k, 0.3 + 0.1 * i + 0.04 * j)
        for i, d_sae in enumerate((64, 128, 256))
        for j, k in enumerate(PLANTED_K)
    ]
    choice = choice_of(rows)
    assert choice["interval"] == {"sae.k": [12, None], "sae.d_sae": [128, None]}
    assert choice["sure"] == "unsure" and "larger d_sae were not tried" in choice["why"]


@pytest.mark.parametrize("rule", ["parsimonious", "stable_knee", "max_ev"])
def test_the_present_rules_choose_as_before(rule):
    choice = choice_of(world(), rule=rule)
    assert config(world(), choice) == {
        "parsimonious": (256, 4), "stable_knee": (256, 4), "max_ev": (512, 32),
    }[rule]  # fmt: skip


def test_agreement_within_its_own_noise_is_not_ranked():
    def agreed(halves):
        (said,) = [
            one
            for one in choice_of(world(stability_halves=halves))["indicators"]
            if one["indicator"] == "agreement of seeds"
        ]
        return said["value"]

    assert agreed(0.001) == 4 and agreed(0.04) == 8
