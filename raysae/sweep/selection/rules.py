"""The sweet spot: each rule chooses among the finished trials and gives its reason.

- ``auto``: what several indicators say together, with an interval for K and d_sae and how sure it is;
  see ``raysae.sweep.selection.auto``. The default.
- ``parsimonious``: the smallest L0, then the smallest d_sae, among the trials whose held-out
  explained variance is within a tolerance of the best.
- ``knee``: see ``raysae.sweep.selection.knee``.
- ``stable_knee``: d_sae by the knee of explained variance, then the largest K at which the seeds agree
  about as well as at the best K; needs two seeds or more.
- ``ev_floor_then_min_dead``: the fewest dead latents among the trials whose explained variance reaches a
  floor.
- ``max_ev``: the highest explained variance.
- ``pareto``: chooses nothing; it names the trials that no other beats in every objective, and the user
  chooses.

A rule that cannot decide chooses nothing and says why.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

from raysae.config.search import Constraint, Objective, SelectConfig, SweepConfig
from raysae.metrics import CANDIDATES, shown
from raysae.records.rows import TrialRow
from raysae.sweep.selection.auto import auto
from raysae.sweep.selection.choice import Choice
from raysae.sweep.selection.knee import Knee, find_knee, find_stable_knee

CONFIG_COLUMNS = ("sae.d_sae", "sae.k", "sae.l0_coefficient", "sae.l1_coefficient")
"""Settings of a candidate that ``selection.json`` holds, if its variant has them."""
OBJECTIVES = SweepConfig().objectives
"""The default objectives of a search."""


def select(
    trials: list[TrialRow],
    settings: SelectConfig,
    constraints: Sequence[Constraint] = (),
    objectives: Sequence[Objective] = OBJECTIVES,
) -> dict[str, Any]:
    """The content of ``selection.json``: the rule, the candidates, the choice of each rule, the choice.

    Only trials within the search's ``constraints`` are candidates. ``objectives`` are for ``pareto``.
    A trial that the recipe names (``select.trial``) is chosen whatever the rule says.
    """
    finished = [row for row in trials if row.done]
    candidates = [row for row in finished if _admitted(row, settings, constraints)]
    front = _front(candidates, objectives)
    choices = {name: _choose(rule, candidates, settings) for name, rule in RULES.items()}
    choices["pareto"] = Choice(None, _named_front(front, objectives))
    choice = choices[settings.rule]
    if settings.trial is not None:
        choice = _by_hand(finished, settings.trial)
    excluded = [row.trial for row in finished if row not in candidates]
    return {
        "rule": settings.rule,
        "settings": settings.model_dump(mode="json"),
        "candidates": [_candidate(row) for row in candidates],
        "excluded_by_constraints": excluded,
        "pareto": {
            "objectives": [f"{one.goal} {one.metric}" for one in objectives],
            "front": [row.trial for row in front],
        },
        "choices": {name: choice.entry for name, choice in choices.items()},
        "choice": choice.entry,
    }


def _candidate(row: TrialRow) -> dict[str, Any]:
    """A candidate's entry in ``selection.json``."""
    columns = [*CONFIG_COLUMNS, *(metric.name for metric in shown(CANDIDATES))]
    known = {key: row[key] for key in columns if row.get(key) is not None}
    return {"trial": row.trial, **known}


def _admitted(row: TrialRow, settings: SelectConfig, constraints: Sequence[Constraint]) -> bool:
    if math.isnan(row.explained_variance):
        return False
    if any(constraint.excess(row.get(constraint.metric)) for constraint in constraints):
        return False
    small = settings.max_l0 is None or row.l0 <= settings.max_l0
    dead = row.dead_fraction
    alive = settings.max_dead_fraction is None or dead <= settings.max_dead_fraction
    return small and alive


def _by_hand(finished: list[TrialRow], number: int) -> Choice:
    for row in finished:
        if row.trial == number:
            return Choice(number, f"{row.name} was chosen by hand (select.trial)")
    done = ", ".join(str(row.trial) for row in finished)
    return Choice(None, f"select.trial is {number}, which is not done; done are {done or 'none'}")


def _choose(rule: "Rule", candidates: list[TrialRow], settings: SelectConfig) -> Choice:
    if not candidates:
        return Choice(None, "no finished trial lies inside the constraints")
    return rule(candidates, settings)


def _auto(candidates: list[TrialRow], settings: SelectConfig) -> Choice:
    return auto(candidates, _parsimonious(candidates, settings))


def _parsimonious(candidates: list[TrialRow], settings: SelectConfig) -> Choice:
    best = max(row.explained_variance for row in candidates)
    floor = best - settings.tolerance * abs(best)
    near = [row for row in candidates if row.explained_variance >= floor]
    chosen = min(near, key=lambda row: (row.l0, row.d_sae, row.trial))
    return Choice(
        chosen.trial,
        f"{chosen.name} has the smallest L0 ({chosen.l0:.2f}) of the {len(near)} of "
        f"{len(candidates)} trials within {settings.tolerance:.0%} of the best explained variance "
        f"({best:.4f}); its own is {chosen.explained_variance:.4f}",
    )


def _ev_floor_then_min_dead(candidates: list[TrialRow], settings: SelectConfig) -> Choice:
    above = [row for row in candidates if row.explained_variance >= settings.ev_floor]
    if not above:
        best = max(row.explained_variance for row in candidates)
        return Choice(
            None, f"no trial reaches explained variance {settings.ev_floor:g} (best: {best:.4f})"
        )
    chosen = min(above, key=lambda row: (row.dead_fraction, row.l0, row.d_sae, row.trial))
    return Choice(
        chosen.trial,
        f"{chosen.name} has the fewest dead latents ({chosen.dead_fraction:.1%}, over the last "
        f"{chosen['dead_window_tokens']:,} training tokens) of the {len(above)} of "
        f"{len(candidates)} trials with explained variance of at least {settings.ev_floor:g}",
    )


def _max_ev(candidates: list[TrialRow], settings: SelectConfig) -> Choice:
    chosen = max(candidates, key=lambda row: (row.explained_variance, -row.trial))
    return Choice(
        chosen.trial,
        f"{chosen.name} has the most explained variance ({chosen.explained_variance:.4f}) of "
        f"{len(candidates)} trials",
    )


def _knee(candidates: list[TrialRow], settings: SelectConfig) -> Choice:
    without = {row["sae.variant"] for row in candidates if row.k is None}
    if without:
        return Choice(None, f"no knee: there is no K in {', '.join(sorted(without))}")
    points = [(row.d_sae, row["sae.k"], row.explained_variance) for row in candidates]
    return _at("knee", find_knee(points), candidates)


def _stable_knee(candidates: list[TrialRow], settings: SelectConfig) -> Choice:
    if any(row.stability is None or row.k is None for row in candidates):
        return Choice(
            None,
            "no stable knee: agreement needs K and at least two seeds (sweep.seeds_per_trial=2)",
        )
    columns = ("sae.d_sae", "sae.k", "explained_variance", "stability")
    points = [tuple(row[column] for column in columns) for row in candidates]
    return _at("stable knee", find_stable_knee(points), candidates)


def _at(name: str, knee: Knee, candidates: list[TrialRow]) -> Choice:
    """The choice of the candidate at ``knee``, or of the nearest one."""
    if knee.d_sae is None or knee.k is None:
        return Choice(None, f"no {name}: {knee.reason}")
    chosen = min(candidates, key=lambda row: (knee.distance(row.d_sae, row["sae.k"]), row.l0))
    tried = (chosen.d_sae, chosen.k) == (knee.d_sae, knee.k)
    nearest = "" if tried else f"; {chosen.name} is the tried config nearest to it"
    agreement = chosen.stability
    stable = "" if agreement is None else f", stability {agreement:.3f}"
    return Choice(
        chosen.trial,
        f"the {name} lies at d_sae {knee.d_sae}, K {knee.k}: {knee.reason}{nearest}; explained "
        f"variance {chosen.explained_variance:.4f}{stable}",
    )


NAMED = 8
"""The most trials of a front that a reason names."""


def _front(candidates: list[TrialRow], objectives: Sequence[Objective]) -> list[TrialRow]:
    """The Pareto front: no other trial is as good in every objective and better in one."""

    def costs(row: TrialRow) -> list[float]:
        signs = [-1 if objective.goal == "maximize" else 1 for objective in objectives]
        return [
            sign * row[objective.metric] for sign, objective in zip(signs, objectives, strict=True)
        ]

    measured = [
        row for row in candidates if all(row.get(one.metric) is not None for one in objectives)
    ]
    points = [(costs(row), row) for row in measured]

    def beaten(mine: list[float]) -> bool:
        return any(
            other != mine and all(a <= b for a, b in zip(other, mine, strict=True))
            for other, _ in points
        )

    return [row for mine, row in points if not beaten(mine)]


def _named_front(front: list[TrialRow], objectives: Sequence[Objective]) -> str:
    goals = ", ".join(f"{one.goal} {one.metric}" for one in objectives)
    if not front:
        return "no finished trial lies inside the constraints"
    names = "; ".join(row.name for row in front[:NAMED])
    if len(front) > NAMED:
        names += f"; and {len(front) - NAMED} more, in selection.json under pareto.front"
    return f"the choice is yours among the front of {len(front)} ({goals}): {names}"


Rule = Callable[[list[TrialRow], SelectConfig], Choice]
RULES: dict[str, Rule] = {
    "auto": _auto,
    "parsimonious": _parsimonious,
    "knee": _knee,
    "stable_knee": _stable_knee,
    "ev_floor_then_min_dead": _ev_floor_then_min_dead,
    "max_ev": _max_ev,
}
