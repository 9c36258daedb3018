"""The table of ``scripts/planted_optima.py --part auto``: its worlds, its judgement, two small worlds."""

import sys
from pathlib import Path

import pytest

from raysae.activations.hard_world import HardWorld
from tests.sweep.selection.test_auto import world as world_rows
from tests.sweep.selection.test_rules import row

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))
from planted_worlds import (
    KINDS,
    Best,
    Budget,
    best_of,
    steps,
    table,
    verdicts,
    world_of,
)

sys.path.pop(0)


def test_worlds_are_drawn_by_their_number_alone():
    for kind in KINDS:
        worlds = [world_of(kind, number) for number in range(20)]
        assert worlds == [world_of(kind, number) for number in range(20)]
        assert len({repr(world) for world in worlds}) == 20
    assert all(isinstance(world_of("hard", number), HardWorld) for number in range(20))


def test_the_best_config_is_that_of_the_truth():
    rows = [
        row(0, 64, 4, 0.8, mcc=0.7, f1=0.9), row(1, 128, 2, 0.9, mcc=0.9, f1=0.5),
        row(2, 128, 6, 0.9, mcc=0.8, f1=0.6), row(3, 256, 6, 0.9, mcc=0.85, f1=0.7),
    ]  # fmt: skip
    assert best_of(rows, 128) == ((128,), 6) and best_of(rows, 60) == ((128,), 4)
    assert best_of(rows, 128, tie=0.05) == ((128, 256), 6)
    assert steps(4, 8, [2, 4, 6, 8]) == 2


def test_each_rule_is_judged():
    found = verdicts(world_rows(), Best((256,), 6))
    assert found["auto"].config == (256, 6) and found["auto"].near and found["auto"].held
    assert found["stable_knee"].config == (256, 4) and found["stable_knee"].near
    assert not found["max_ev"].near and found["max_ev"].held is None
    assert not verdicts(world_rows(), Best((32, 64), 6))["auto"].near
    assert verdicts(world_rows(), Best((64, 128), 6))["auto"].near


@pytest.mark.long
def test_auto_is_near_the_best_in_a_small_world_of_each_kind(tmp_path, capsys):
    budget = Budget(40_000, 4, 9, 256, sizes=(32, 64, 128), ks=(1, 2, 4, 8))
    found = table(tmp_path, 1, budget, first=10)
    out = capsys.readouterr().out
    assert found["worlds"] == 2 and found["near"] >= 1, out
    again = table(tmp_path, 1, budget, first=10)
    assert again == found
