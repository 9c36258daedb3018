"""Waves: gangs that start together, so that they share a scan; nothing of it shows in the proposals."""

import random
from itertools import pairwise

import pytest

from raysae.config import parse_recipe
from raysae.sweep.search.proposals import make_proposer
from raysae.sweep.search.searcher import OrderedSearcher

SPACE = {"sae.d_sae": {"choices": [16, 64, 256]}, "sae.k": {"low": 1, "high": 128, "log": True}}


def recipe(**sweep):
    return parse_recipe({"sweep": {"trials": 10, "space": SPACE, "proposal_lag": 4, **sweep}})


class Sweep:
    """Drives a searcher as Tune would, with at most ``at_once`` gangs at a time."""

    def __init__(self, recipe, at_once, shuffle=0, **options):
        self.at_work, self.random, self.at_once = [], random.Random(shuffle), at_once
        self.searcher = OrderedSearcher(
            make_proposer(recipe), at_work=self.at_work.append, **options
        )
        self.running, self.proposed, self.started = {}, {}, []
        """What runs; the parameters by trial; which trials started while which others ran."""

    def start(self):
        while len(self.running) < self.at_once:
            name = f"id{len(self.proposed)}"
            suggestion = self.searcher.suggest(name)
            if not isinstance(suggestion, dict):
                return
            self.running[name] = suggestion["gang"]
            self.proposed |= {one["trial"]: one["parameters"] for one in suggestion["gang"]}
            self.started.append([one["trial"] for one in suggestion["gang"]])

    def end(self, **kwargs):
        name = self.random.choice(sorted(self.running))
        reports = [
            {"trial": one["trial"], "done": True, "explained_variance": 1 / one["parameters"]["sae.k"],
             "l0": float(one["parameters"]["sae.k"])}
            for one in self.running.pop(name)
        ]  # fmt: skip
        self.searcher.on_trial_complete(name, {"gang": reports}, **kwargs)

    def run(self):
        """The number of gangs that ran after each start, until all have ended."""
        sizes = []
        self.start()
        while self.running:
            sizes.append(len(self.running))
            self.end()
            self.start()
        return sizes


@pytest.mark.parametrize("shuffle", range(3))
def test_a_wave_begins_when_the_one_before_has_ended(shuffle):
    sweep = Sweep(recipe(), at_once=4, shuffle=shuffle, wave=4)
    assert sweep.run() == [4, 3, 2, 1, 4, 3, 2, 1, 2, 1]
    assert sorted(sweep.proposed) == list(range(10))


def test_how_many_are_at_work_is_told_before_the_first_of_a_wave_begins():
    sweep = Sweep(recipe(), at_once=4, wave=4)
    told = sweep.at_work
    assert sweep.searcher.suggest("first") and told == [4]
    sweep = Sweep(recipe(), at_once=4, wave=4)
    sweep.run()
    assert sweep.at_work == [4, 3, 2, 1, 0, 4, 3, 2, 1, 0, 2, 1, 0]


def test_gangs_are_what_a_wave_counts():
    sweep = Sweep(recipe(proposal_lag=6), at_once=3, wave=2, gang=3)
    assert sweep.run() == [2, 1, 2, 1]
    assert sweep.started == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9]]
    assert sweep.at_work == [2, 1, 0, 2, 1, 0]


@pytest.mark.parametrize("wave", [2, 4])
def test_waves_never_show_in_the_proposals(wave):
    wanted = Sweep(recipe(), at_once=1)
    wanted.run()
    sweep = Sweep(recipe(), at_once=4, shuffle=1, wave=wave)
    sweep.run()
    assert sweep.proposed == wanted.proposed


def test_without_waves_a_trial_starts_as_soon_as_its_proposal_may_be_made():
    sweep = Sweep(recipe(), at_once=4)
    sizes = sweep.run()
    started = [later >= earlier > 1 for earlier, later in pairwise(sizes)]
    assert sizes[0] == 4 and any(started), "one starts while others still run"


def test_a_trial_that_fails_ends_its_part_of_the_wave():
    sweep = Sweep(recipe(trials=4), at_once=2, wave=2)
    sweep.start()
    assert len(sweep.running) == 2
    name = min(sweep.running)
    sweep.running.pop(name)
    sweep.searcher.on_trial_complete(name, None, error=True)
    sweep.start()
    assert len(sweep.running) == 1, "the other one still runs"
    sweep.end()
    sweep.start()
    assert len(sweep.running) == 2
