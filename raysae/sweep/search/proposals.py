"""Which config comes next. Proposals are reproducible: results arrive in any order and never show.

Trial i is proposed from the results of trials 0 .. i-lag alone, told to Optuna in their order; a
seed then fixes the whole sweep, whatever the timing, the concurrency or a resume.
"""

import math
import random
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import optuna

from raysae.config import Recipe
from raysae.errors import UserError
from raysae.sweep.search.space import Parameters, Space, text

Outcome = Mapping[str, Any] | None
"""A finished trial's metrics, or None when it failed."""
Known = Sequence[tuple[Parameters, Mapping[str, Any]]]
"""Trials of earlier runs: their parameters and metrics."""

SUGGESTIONS, DRAWS = 20, 1000
"""How often the sampler is asked for a trial, and how many random draws follow, before giving up."""
BEYOND = 1e9
"""Stands for an infinite excess, which Optuna does not take."""


class Proposer(Protocol):
    """Gives each trial's parameters, in order."""

    trials: int
    """Trials to run in all."""
    lag: int
    """Trial i may be proposed once trials 0 .. i-lag have ended; more than ``trials``: at once."""

    def propose(self, number: int, outcomes: Mapping[int, Outcome]) -> Parameters | None:
        """Trial ``number``'s parameters from the outcomes of trials 0 .. number-lag; None: no more."""


def make_proposer(recipe: Recipe, known: Known = (), d_in: int | None = None) -> Proposer:
    """The proposer that the recipe asks for, which has learnt from the trials in ``known``; with ``d_in``
    it proposes nothing that takes more memory than the recipe allows.

    Raises UserError when nothing valid can be proposed.
    """
    sweep = recipe.sweep
    if sweep.sampler == "list":
        return _Listed(recipe, list(sweep.configs))
    if sweep.sampler == "grid":
        return _Listed(recipe, Space(recipe, d_in).grid())
    return Searched(recipe, known, d_in)


def check_search(recipe: Recipe) -> None:
    """Raise UserError when the search contradicts itself, whatever the activations are."""
    sweep = recipe.sweep
    if sweep.sampler == "list":
        _Listed(recipe, list(sweep.configs))
    elif sweep.sampler == "grid":
        _Listed(recipe, Space(recipe).grid())
    else:
        space = Space(recipe)
        space.valid_corners()
        for number, point in enumerate(sweep.first):
            checked_point(recipe, space, number, point)


def checked_point(recipe: Recipe, space: Space, number: int, point: Parameters) -> dict[str, Any]:
    """Point ``number`` of ``sweep.first`` in Optuna's terms. Raises UserError on one outside the
    space."""
    try:
        drawn = space.drawn(point)
    except UserError as error:
        raise UserError(f"sweep.first[{number}]: {error}") from None
    if len(drawn) == len(space.space):
        recipe.with_parameters(space.relevant(point))
    return drawn


class _Listed:
    """Configs written down beforehand."""

    def __init__(self, recipe: Recipe, configs: list[Parameters]):
        if len(configs) > recipe.sweep.trials:
            raise UserError(
                f"sweep.trials is {recipe.sweep.trials}, but the {recipe.sweep.sampler} holds "
                f"{len(configs)} configs; raise sweep.trials or shorten it"
            )
        for config in configs:
            recipe.with_parameters(config)
        self.configs, self.trials, self.lag = configs, len(configs), len(configs) + 1

    def propose(self, number: int, outcomes: Mapping[int, Outcome]) -> Parameters | None:
        return self.configs[number]


class Searched:
    """Configs that Optuna proposes, each valid and none twice."""

    def __init__(self, recipe: Recipe, known: Known, d_in: int | None):
        sweep = recipe.sweep
        self.recipe, self.trials = recipe, sweep.trials
        follows = sweep.sampler != "random" and sweep.reproducible
        self.lag = sweep.proposal_lag if follows else sweep.trials + 1
        self._space = Space(recipe, d_in)
        self._space.valid_corners()
        self._first = [
            checked_point(recipe, self._space, number, point)
            for number, point in enumerate(sweep.first)
        ]
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.study = optuna.create_study(
            directions=[objective.goal for objective in sweep.objectives], sampler=_sampler(recipe)
        )
        self._asked: dict[int, optuna.trial.Trial] = {}
        self._told: set[int] = set()
        self._seen: set[str] = set()
        self.learnt = sum(self._learn(*trial) for trial in known)

    def propose(self, number: int, outcomes: Mapping[int, Outcome]) -> Parameters | None:
        ended = range(number - self.lag + 1) if self.recipe.sweep.reproducible else sorted(outcomes)
        for other in ended:
            if other not in self._told:
                self._tell(self._asked[other], outcomes[other])
                self._told.add(other)
        trial = self._given(number) or self._suggested() or self._drawn(number)
        if trial is None:
            return None
        self._asked[number] = trial
        parameters = self._space.parameters(trial.params)
        self._seen.add(text(parameters))
        return parameters

    def ended(self, number: int, outcome: Outcome) -> optuna.trial.FrozenTrial:
        """Trial ``number`` with what it came to, as Optuna keeps one, for people to look at: numbers
        are themselves there, not places among choices, and keys of another variant are left out."""
        params = self._space.parameters(self._asked[number].params)
        asked = {"params": params, "distributions": {key: self._space.shown(key) for key in params}}
        values = _values(self.recipe, outcome)
        if values is None:
            return optuna.trial.create_trial(state=optuna.trial.TrialState.FAIL, **asked)
        figures = {
            key: figure
            for key, figure in (outcome or {}).items()
            if isinstance(figure, int | float | str) and not isinstance(figure, bool)
        }
        return optuna.trial.create_trial(
            values=values, constraints=_excess(self.recipe, outcome), user_attrs=figures, **asked
        )

    def _given(self, number: int) -> optuna.trial.Trial | None:
        """The recipe's own point, where there is one for this number."""
        if number >= len(self._first):
            return None
        for _ in range(SUGGESTIONS):
            self.study.enqueue_trial(self._first[number])
            trial = self.study.ask(self._space.distributions)
            if self._fresh_and_valid(self._space.parameters(trial.params)):
                return trial
            self.study.tell(trial, state=optuna.trial.TrialState.FAIL)
        return None

    def _suggested(self) -> optuna.trial.Trial | None:
        """What the sampler suggests, unless it keeps suggesting what cannot be or has been."""
        for _ in range(SUGGESTIONS):
            trial = self.study.ask(self._space.distributions)
            if self._fresh_and_valid(self._space.parameters(trial.params)):
                return trial
            # static ranges keep Optuna's model sound, so what cannot be is asked for again
            self.study.tell(trial, state=optuna.trial.TrialState.FAIL)
        return None

    def _drawn(self, number: int) -> optuna.trial.Trial | None:
        """A config at random that is valid and new; None when so many draws found none."""
        rng = random.Random(f"{self.recipe.seed}-{number}")
        for _ in range(DRAWS):
            drawn = self._space.at_random(rng)
            if self._fresh_and_valid(self._space.parameters(drawn)):
                self.study.enqueue_trial(drawn)
                return self.study.ask(self._space.distributions)
        return None

    def _tell(self, trial: optuna.trial.Trial, outcome: Outcome) -> None:
        values = _values(self.recipe, outcome)
        if values is None:  # a NaN would leave the trial running for ever
            self.study.tell(trial, state=optuna.trial.TrialState.FAIL)
            return
        for name, excess in _excess(self.recipe, outcome).items():
            trial.set_constraint(name, excess)
        self.study.tell(trial, values)

    def _learn(self, parameters: Parameters, metrics: Mapping[str, Any]) -> bool:
        """Add a trial of an earlier run to the study; whether it could be."""
        values = _values(self.recipe, metrics)
        try:
            # what its variant does not have was never decided; any value will do
            rest = self._space.at_random(random.Random(text(parameters)))
            drawn = {**rest, **self._space.drawn(parameters)}
        except UserError:
            return False
        if values is None or self._space.parameters(drawn) != parameters:
            return False
        self.study.add_trial(
            optuna.trial.create_trial(
                params=drawn, distributions=self._space.distributions, values=values,
                constraints=_excess(self.recipe, metrics),
            )
        )  # fmt: skip
        return True

    def _fresh_and_valid(self, parameters: Parameters) -> bool:
        return text(parameters) not in self._seen and self._space.valid(parameters)


def _values(recipe: Recipe, outcome: Outcome) -> list[float] | None:
    """The objectives' values; None where one of them is missing or not finite."""
    values = [(outcome or {}).get(objective.metric) for objective in recipe.sweep.objectives]
    found = [float(value) for value in values if value is not None and math.isfinite(value)]
    return found if len(found) == len(values) else None


def _excess(recipe: Recipe, outcome: Outcome) -> dict[str, float]:
    """How far the trial lies outside each constraint."""
    found = outcome or {}
    return {
        str(constraint): min(constraint.excess(found.get(constraint.metric)), BEYOND)
        for constraint in recipe.sweep.constraints
    }


def _sampler(recipe: Recipe) -> optuna.samplers.BaseSampler:
    sweep = recipe.sweep
    if sweep.sampler == "random":
        return optuna.samplers.RandomSampler(seed=recipe.seed)
    if sweep.sampler == "nsga2":
        population = max(sweep.startup_trials, 2)
        return optuna.samplers.NSGAIISampler(seed=recipe.seed, population_size=population)
    # dictionary size, sparsity and learning rate hang together; keys of a variant are a group
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", optuna.exceptions.ExperimentalWarning
        )  # group may yet change
        return optuna.samplers.TPESampler(
            seed=recipe.seed, n_startup_trials=sweep.startup_trials, multivariate=True, group=True
        )
