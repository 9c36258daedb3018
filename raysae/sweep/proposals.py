"""Which config comes next. Proposals are reproducible: results arrive in any order and never show.

Trial i is proposed from the results of trials 0 .. i-lag alone, told to Optuna in their order; a
seed then fixes the whole sweep, whatever the timing, the concurrency or a resume.
"""

import itertools
import json
import math
import random
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from raysae.config import Choices, Range, Recipe
from raysae.errors import UserError

Parameters = dict[str, Any]
"""Dotted recipe keys to values, such as ``{"sae.d_sae": 512, "sae.k": 32}``."""
Outcome = Mapping[str, Any] | None
"""A finished trial's metrics, or None when it failed."""

SUGGESTIONS, DRAWS = 20, 1000
"""How often the sampler is asked for a trial, and how many random draws follow, before giving up."""


class Proposer(Protocol):
    """Gives each trial's parameters, in order."""

    trials: int
    """Trials to run in all."""
    lag: int
    """Trial i may be proposed once trials 0 .. i-lag have ended; more than ``trials``: at once."""

    def propose(self, number: int, outcomes: Mapping[int, Outcome]) -> Parameters | None:
        """Trial ``number``'s parameters from the outcomes of trials 0 .. number-lag; None: no more."""


def make_proposer(recipe: Recipe) -> Proposer:
    """The proposer that the recipe asks for. Raises UserError when nothing valid can be proposed."""
    sweep = recipe.sweep
    if sweep.sampler == "list":
        return _Listed(recipe, list(sweep.configs))
    if sweep.sampler == "grid":
        return _Listed(recipe, _grid(recipe))
    return _Searched(recipe)


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


class _Searched:
    """Configs that Optuna proposes, each valid and none twice."""

    def __init__(self, recipe: Recipe):
        sweep = recipe.sweep
        self.recipe, self.trials = recipe, sweep.trials
        self.lag = sweep.proposal_lag if sweep.sampler == "tpe" else sweep.trials + 1
        self._space = _Space(sweep.space)
        self._refuse_empty_space()
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.study = optuna.create_study(
            directions=[objective.goal for objective in sweep.objectives], sampler=_sampler(recipe)
        )
        self._asked: dict[int, optuna.trial.Trial] = {}
        self._told = 0
        self._seen: set[str] = set()

    def propose(self, number: int, outcomes: Mapping[int, Outcome]) -> Parameters | None:
        while self._told <= number - self.lag:
            self._tell(self._told, outcomes[self._told])
            self._told += 1
        trial = self._suggested() or self._drawn(number)
        if trial is None:
            return None
        self._asked[number] = trial
        parameters = self._space.values(trial.params)
        self._seen.add(_text(parameters))
        return parameters

    def _suggested(self) -> optuna.trial.Trial | None:
        """What the sampler suggests, unless it keeps suggesting what cannot be or has been."""
        for _ in range(SUGGESTIONS):
            trial = self.study.ask(self._space.distributions)
            if self._fresh_and_valid(self._space.values(trial.params)):
                return trial
            # static ranges keep Optuna's model sound, so what cannot be is asked for again
            self.study.tell(trial, state=optuna.trial.TrialState.FAIL)
        return None

    def _drawn(self, number: int) -> optuna.trial.Trial | None:
        """A config at random that is valid and new; None when so many draws found none."""
        rng = random.Random(f"{self.recipe.seed}-{number}")
        for _ in range(DRAWS):
            drawn = self._space.draw(rng)
            if self._fresh_and_valid(self._space.values(drawn)):
                self.study.enqueue_trial(drawn)
                return self.study.ask(self._space.distributions)
        return None

    def _tell(self, number: int, outcome: Outcome) -> None:
        values = [outcome.get(o.metric) for o in self.recipe.sweep.objectives] if outcome else []
        if values and all(value is not None and math.isfinite(value) for value in values):
            self.study.tell(self._asked[number], values)
        else:  # a NaN would leave the trial running for ever
            self.study.tell(self._asked[number], state=optuna.trial.TrialState.FAIL)

    def _fresh_and_valid(self, parameters: Parameters) -> bool:
        fresh = _text(parameters) not in self._seen
        return fresh and _is_valid(self.recipe, parameters)

    def _refuse_empty_space(self) -> None:
        """Raise the last complaint when no corner of the space makes a valid config."""
        complaint: UserError | None = None
        for corner in self._space.corners():
            try:
                self.recipe.with_parameters(corner)
            except UserError as error:
                complaint = error
            else:
                return
        raise UserError(f"sweep.space leaves nothing valid: {complaint}")


class _Space:
    """The search space as Optuna sees it: numeric choices become their place in the order."""

    def __init__(self, space: Mapping[str, Choices | Range]):
        self.space = {key: _sorted_choices(values) for key, values in space.items()}
        self.distributions = {key: _distribution(values) for key, values in self.space.items()}

    def values(self, drawn: Mapping[str, Any]) -> Parameters:
        return {key: self._value(key, drawn[key]) for key in self.space}

    def draw(self, rng: random.Random) -> dict[str, Any]:
        """One point in Optuna's own terms, uniform over the space's scales."""
        return {key: _draw(distribution, rng) for key, distribution in self.distributions.items()}

    def corners(self) -> list[Parameters]:
        ends = [
            [values.choices[0], values.choices[-1]]
            if isinstance(values, Choices)
            else [values.low, values.high]
            for values in self.space.values()
        ]
        return [dict(zip(self.space, corner, strict=True)) for corner in itertools.product(*ends)]

    def _value(self, key: str, drawn: Any) -> Any:
        values = self.space[key]
        return values.choices[drawn] if isinstance(values, Choices) and _numeric(values) else drawn


def _numeric(values: Choices) -> bool:
    return not any(isinstance(choice, str) for choice in values.choices)


def _sorted_choices(values: Choices | Range) -> Choices | Range:
    if isinstance(values, Range) or not _numeric(values):
        return values
    return Choices(choices=tuple(sorted(set(values.choices))))


def _distribution(values: Choices | Range) -> BaseDistribution:
    if isinstance(values, Choices):
        if _numeric(values):
            return IntDistribution(0, len(values.choices) - 1)
        return CategoricalDistribution(values.choices)
    if isinstance(values.low, int) and isinstance(values.high, int):
        return IntDistribution(values.low, values.high, log=values.log)
    return FloatDistribution(values.low, values.high, log=values.log)


def _draw(distribution: BaseDistribution, rng: random.Random) -> Any:
    if isinstance(distribution, CategoricalDistribution):
        return rng.choice(distribution.choices)
    assert isinstance(distribution, IntDistribution | FloatDistribution)
    low, high = distribution.low, distribution.high
    if distribution.log:
        value = math.exp(rng.uniform(math.log(low), math.log(high)))
    elif isinstance(distribution, IntDistribution):
        return rng.randint(int(low), int(high))
    else:
        value = rng.uniform(low, high)
    value = min(max(value, low), high)
    return round(value) if isinstance(distribution, IntDistribution) else value


def _text(parameters: Parameters) -> str:
    return json.dumps(parameters, sort_keys=True)


def _sampler(recipe: Recipe) -> optuna.samplers.BaseSampler:
    if recipe.sweep.sampler == "random":
        return optuna.samplers.RandomSampler(seed=recipe.seed)
    return optuna.samplers.TPESampler(
        seed=recipe.seed, n_startup_trials=recipe.sweep.startup_trials
    )


def _grid(recipe: Recipe) -> list[Parameters]:
    """Every combination of the choices that makes a valid config, in order."""
    space = recipe.sweep.space
    choices: Sequence[tuple[Any, ...]] = [
        values.choices for values in space.values() if isinstance(values, Choices)
    ]
    combinations = [dict(zip(space, row, strict=True)) for row in itertools.product(*choices)]
    valid = [config for config in combinations if _is_valid(recipe, config)]
    if not valid:
        recipe.with_parameters(combinations[0])
    return valid


def _is_valid(recipe: Recipe, config: Parameters) -> bool:
    try:
        recipe.with_parameters(config)
    except UserError:
        return False
    return True
