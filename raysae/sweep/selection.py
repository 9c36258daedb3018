"""The sweet spot: written rules over the finished trials, each with its choice and its reason.

- ``parsimonious``: the smallest L0, then the smallest d_sae, among the trials whose held-out
  explained variance is within a tolerance of the best.
- ``knee``: see ``raysae.sweep.knee``.
- ``ev_floor_then_min_dead``: the fewest dead latents among the trials above a floor.
- ``max_ev``: the most explained variance.

A rule that finds nothing to go by says so and chooses nothing.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raysae.config import SelectConfig
from raysae.files import write_json
from raysae.records.tables import config_of
from raysae.sweep.knee import find_knee

Row = dict[str, Any]
"""A row of ``trials.parquet``."""

CANDIDATE_COLUMNS = (
    "trial", "sae.d_sae", "sae.k", "sae.l0_coefficient", "sae.l1_coefficient",
    "explained_variance", "l0", "dead_fraction", "dead_fraction_validation", "mse", "cosine",
)  # fmt: skip


@dataclass(frozen=True)
class Choice:
    """What a rule picks: a trial's number, or None, and why."""

    trial: int | None
    reason: str


def select(trials: list[Row], settings: SelectConfig) -> dict[str, Any]:
    """What ``selection.json`` holds: the rule, the candidates, every rule's choice, the choice."""
    finished = [row for row in trials if row["state"] == "done"]
    candidates = [row for row in finished if _admitted(row, settings)]
    choices = {name: _choose(rule, candidates, settings) for name, rule in RULES.items()}
    choice = choices[settings.rule]
    excluded = [row["trial"] for row in finished if row not in candidates]
    return {
        "rule": settings.rule,
        "settings": settings.model_dump(mode="json"),
        "candidates": [
            {key: row[key] for key in CANDIDATE_COLUMNS if row.get(key) is not None}
            for row in candidates
        ],
        "excluded_by_constraints": excluded,
        "choices": {name: {"trial": c.trial, "reason": c.reason} for name, c in choices.items()},
        "choice": {"trial": choice.trial, "reason": choice.reason},
    }


def write_selection(path: Path, trials: list[Row], settings: SelectConfig) -> dict[str, Any]:
    selection = select(trials, settings)
    write_json(path, selection)
    return selection


def _admitted(row: Row, settings: SelectConfig) -> bool:
    if row["explained_variance"] is None or row["explained_variance"] != row["explained_variance"]:
        return False
    small = settings.max_l0 is None or row["l0"] <= settings.max_l0
    dead = row["dead_fraction"]
    alive = settings.max_dead_fraction is None or dead <= settings.max_dead_fraction
    return small and alive


def _choose(rule: "Rule", candidates: list[Row], settings: SelectConfig) -> Choice:
    if not candidates:
        return Choice(None, "no finished trial lies inside the constraints")
    return rule(candidates, settings)


def _parsimonious(candidates: list[Row], settings: SelectConfig) -> Choice:
    best = max(row["explained_variance"] for row in candidates)
    floor = best - settings.tolerance * abs(best)
    near = [row for row in candidates if row["explained_variance"] >= floor]
    chosen = min(near, key=lambda row: (row["l0"], row["sae.d_sae"], row["trial"]))
    return Choice(
        chosen["trial"],
        f"{_name(chosen)} has the smallest L0 ({chosen['l0']:.2f}) of the {len(near)} of "
        f"{len(candidates)} trials within {settings.tolerance:.0%} of the best explained variance "
        f"({best:.4f}); its own is {chosen['explained_variance']:.4f}",
    )


def _ev_floor_then_min_dead(candidates: list[Row], settings: SelectConfig) -> Choice:
    above = [row for row in candidates if row["explained_variance"] >= settings.ev_floor]
    if not above:
        best = max(row["explained_variance"] for row in candidates)
        return Choice(
            None, f"no trial reaches explained variance {settings.ev_floor:g} (best: {best:.4f})"
        )
    chosen = min(
        above, key=lambda row: (row["dead_fraction"], row["l0"], row["sae.d_sae"], row["trial"])
    )
    return Choice(
        chosen["trial"],
        f"{_name(chosen)} has the fewest dead latents ({chosen['dead_fraction']:.1%}, over the last "
        f"{chosen['dead_window_tokens']:,} training tokens) of the {len(above)} of "
        f"{len(candidates)} trials with explained variance of at least {settings.ev_floor:g}",
    )


def _max_ev(candidates: list[Row], settings: SelectConfig) -> Choice:
    chosen = max(candidates, key=lambda row: (row["explained_variance"], -row["trial"]))
    return Choice(
        chosen["trial"],
        f"{_name(chosen)} has the most explained variance ({chosen['explained_variance']:.4f}) of "
        f"{len(candidates)} trials",
    )


def _knee(candidates: list[Row], settings: SelectConfig) -> Choice:
    without = {row["sae.variant"] for row in candidates if row.get("sae.k") is None}
    if without:
        return Choice(None, f"no knee: there is no K in {', '.join(sorted(without))}")
    knee = find_knee(
        [(row["sae.d_sae"], row["sae.k"], row["explained_variance"]) for row in candidates]
    )
    if knee.d_sae is None or knee.k is None:
        return Choice(None, f"no knee: {knee.reason}")
    chosen = min(
        candidates, key=lambda row: (knee.distance(row["sae.d_sae"], row["sae.k"]), row["l0"])
    )
    tried = (chosen["sae.d_sae"], chosen["sae.k"]) == (knee.d_sae, knee.k)
    nearest = "" if tried else f"; {_name(chosen)} is the tried config nearest to it"
    return Choice(
        chosen["trial"],
        f"the knee lies at d_sae {knee.d_sae}, K {knee.k}: {knee.reason}{nearest}; explained "
        f"variance {chosen['explained_variance']:.4f}",
    )


def _name(row: Row) -> str:
    return f"trial {row['trial']} ({config_of(row)})"


Rule = Callable[[list[Row], SelectConfig], Choice]
RULES: dict[str, Rule] = {
    "parsimonious": _parsimonious,
    "knee": _knee,
    "ev_floor_then_min_dead": _ev_floor_then_min_dead,
    "max_ev": _max_ev,
}
