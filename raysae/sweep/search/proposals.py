"""Which config comes next. Proposals are reproducible: the order in which results arrive has no effect.

Trial i is proposed from the results of trials 0 .. i-lag only. Optuna gets them in the order of their
numbers. The seed then fixes the whole sweep, whatever the timing, the concurrency or a resume.
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
"""How many suggestions of the sampler, and then how many random draws, are tried for one trial."""
BEYOND = 1e9
"""Replaces an infinite excess, which Optuna does not accept."""


class Proposer(Protocol):
    """Proposes the parameters of each trial, in the order of the trials' numbers."""

    trials: int
    """The number of trials to run."""
    lag: int
    """Trial i may be proposed once trials 0 .. i-lag have ended; if ``lag`` is more than ``trials``, no
    trial waits for another."""

    def propose(self, number: int, outcomes: Mapping[int, Outcome]) -> Parameters | None:
        """The parameters of trial ``number``, or None when no further config exists.

        ``outcomes`` must hold trials 0 .. number-lag.
        """


def make_proposer(recipe: Recipe, known: Known = (), d_in: int | None = None) -> Proposer:
    """The proposer for ``recipe.sweep.sampler``.

    A sampler that learns starts with the trials in ``known``. With ``d_in``, the width of the
    activations, no config that takes more memory than the recipe allows is proposed.
    Raises UserError when no valid config can be proposed.
    """
    sweep = recipe.sweep
    if sweep.sampler == "list":
        return _Listed(recipe, list(sweep.configs))
    if sweep.sampler == "grid":
        return _Listed(recipe, Space(recipe, d_in).grid())
    return Searched(recipe, known, d_in)


def check_search(recipe: Recipe) -> None:
    """Raise UserError when the search is not valid for any activations."""
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
    """Point ``number`` of ``sweep.first`` as values for Optuna.

    Raises UserError when the point lies outside the space.
    """
    try:
        drawn = space.drawn(point)
    except UserError as error:
        raise UserError(f"sweep.first[{number}]: {error}") from None
    if len(drawn) == len(space.space):
        recipe.with_parameters(space.relevant(point))
    return drawn


class _Listed:
    """Proposes a fixed list of configs: a list or a grid."""

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
    """Proposes configs by an Optuna sampler: each is valid, and none is proposed twice."""

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
        self._reported: set[int] = set()
        self._seen: set[str] = set()
        self.learnt = sum(self._learn(*trial) for trial in known)

    def propose(self, number: int, outcomes: Mapping[int, Outcome]) -> Parameters | None:
        """The parameters of trial ``number``; see ``Proposer.propose``.

        It is a point of ``sweep.first``, else a suggestion of the sampler, else a random draw.
        """
        ended = range(number - self.lag + 1) if self.recipe.sweep.reproducible else sorted(outcomes)
        for other in ended:
            if other not in self._reported:
                self._report(self._asked[other], outcomes[other])
                self._reported.add(other)
        trial = self._first_point(number) or self._suggested() or self._random(number)
        if trial is None:
            return None
        self._asked[number] = trial
        parameters = self._space.parameters(trial.params)
        self._seen.add(text(parameters))
        return parameters

    def ended(self, number: int, outcome: Outcome) -> optuna.trial.FrozenTrial:
        """Trial ``number`` and its outcome as a trial of Optuna, for display.

        Choices of numbers are shown as numbers, not as indices. Keys that the trial's variant does not
        have are left out.
        """
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

    def _first_point(self, number: int) -> optuna.trial.Trial | None:
        """The point of ``sweep.first`` with this number, if it exists and is valid and new."""
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
        """A valid and new suggestion of the sampler; None when all of ``SUGGESTIONS`` were not."""
        for _ in range(SUGGESTIONS):
            trial = self.study.ask(self._space.distributions)
            if self._fresh_and_valid(self._space.parameters(trial.params)):
                return trial
            # ranges stay static for Optuna's model, so an invalid suggestion is replaced by another
            self.study.tell(trial, state=optuna.trial.TrialState.FAIL)
        return None

    def _random(self, number: int) -> optuna.trial.Trial | None:
        """A random config that is valid and new; None when ``DRAWS`` draws found none."""
        rng = random.Random(f"{self.recipe.seed}-{number}")
        for _ in range(DRAWS):
            drawn = self._space.at_random(rng)
            if self._fresh_and_valid(self._space.parameters(drawn)):
                self.study.enqueue_trial(drawn)
                return self.study.ask(self._space.distributions)
        return None

    def _report(self, trial: optuna.trial.Trial, outcome: Outcome) -> None:
        values = _values(self.recipe, outcome)
        if values is None:  # a NaN would leave the trial running for ever
            self.study.tell(trial, state=optuna.trial.TrialState.FAIL)
            return
        for name, excess in _excess(self.recipe, outcome).items():
            trial.set_constraint(name, excess)
        self.study.tell(trial, values)

    def _learn(self, parameters: Parameters, metrics: Mapping[str, Any]) -> bool:
        """Add a trial of an earlier run to the study; whether it could be added."""
        values = _values(self.recipe, metrics)
        try:
            # keys that its variant does not have get a random value
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
    """The objectives' values; None when one of them is missing or not finite."""
    values = [(outcome or {}).get(objective.metric) for objective in recipe.sweep.objectives]
    found = [float(value) for value in values if value is not None and math.isfinite(value)]
    return found if len(found) == len(values) else None


def _excess(recipe: Recipe, outcome: Outcome) -> dict[str, float]:
    """By how much the trial breaks each constraint; 0 where it does not."""
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
    # multivariate: dictionary size, sparsity and learning rate depend on each other; group: the keys
    # of a variant belong together
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", optuna.exceptions.ExperimentalWarning
        )  # ``group`` and GPSampler are experimental
        if sweep.sampler == "gp":
            # the noise of a trial is not that of its config: the kernel's own term is for it
            return optuna.samplers.GPSampler(
                seed=recipe.seed,
                n_startup_trials=sweep.startup_trials,
                deterministic_objective=False,
            )
        return optuna.samplers.TPESampler(
            seed=recipe.seed, n_startup_trials=sweep.startup_trials, multivariate=True, group=True
        )
