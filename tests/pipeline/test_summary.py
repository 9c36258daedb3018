"""The table of the last screen: all of a few trials, the telling ones of many."""

from collections.abc import Collection

from raysae.pipeline.summary import LISTED, listed_trials
from raysae.records.rows import TrialRow


def rows(count: int, failed: Collection[int] = ()) -> list[TrialRow]:
    return [
        TrialRow(number, "failed" if number in failed else "done", "", {})
        for number in range(count)
    ]


def selection(chosen: int | None, front: list[int]) -> dict:
    return {"choice": {"trial": chosen}, "choices": {}, "pareto": {"front": front}}


def test_all_of_a_few_trials():
    assert listed_trials(rows(LISTED), selection(None, [])) == rows(LISTED)


def test_of_many_the_chosen_the_front_and_the_failed_come_first():
    front = list(range(100, 100 + LISTED - 3))
    shown = [row.trial for row in listed_trials(rows(300, {7}), selection(250, front))]
    assert len(shown) == LISTED and shown == sorted(shown)
    assert {250, 7, *front} < set(shown) and set(shown) - {250, 7, *front} == {0}


def test_a_front_longer_than_the_table_keeps_the_chosen_trial():
    shown = [row.trial for row in listed_trials(rows(300), selection(299, list(range(100))))]
    assert len(shown) == LISTED and shown[-1] == 299
