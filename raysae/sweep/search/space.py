"""The search space: the recipe's ``sweep.space``, the same for Optuna, and the configs it holds.

Ranges are static, because Optuna's models need that. A key that a trial's variant does not have is
drawn, too, and then left out of the trial.
"""

import itertools
import json
import math
import random
from collections.abc import Iterator, Mapping
from typing import Any

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from raysae.config import Recipe, searchable_keys
from raysae.config.search import Choices, Range
from raysae.errors import UserError
from raysae.training.memory import training_bytes

Parameters = dict[str, Any]
"""Dotted recipe keys to values, such as ``{"sae.d_sae": 512, "sae.k": 32}``."""
Drawn = dict[str, Any]
"""Keys to values as Optuna has them: a numeric choice is its index among the sorted choices."""

MOST_CORNERS = 1024
"""The most corners of a space that are checked."""
MEMORY = "training_bytes"
"""The metric that is known before a trial is trained."""


class Space:
    """The recipe's ``sweep.space``; ``d_in`` is the width of the activations, if known.

    Raises UserError when the space has a key that no trial can have.
    """

    def __init__(self, recipe: Recipe, d_in: int | None = None):
        self.recipe, self.d_in = recipe, d_in
        self.space = {key: _ordered(values) for key, values in recipe.sweep.space.items()}
        self.distributions = {key: _distribution(values) for key, values in self.space.items()}
        for name in recipe.variants_searched:
            recipe.with_parameters({"sae.variant": name})  # known, and valid on its own
        self.keys_of = {name: searchable_keys(name) for name in recipe.variants_searched}
        for key in self.space:
            if not any(key in keys for keys in self.keys_of.values()):
                recipe.with_parameters({key: None})  # raises, with the reason

    def parameters(self, drawn: Drawn) -> Parameters:
        """The parameters of the trial at a point of the space."""
        return self.relevant({key: self._value(key, drawn[key]) for key in self.space})

    def shown(self, key: str) -> BaseDistribution:
        """The key's values for display: choices of numbers become the range that they span."""
        values = self.space[key]
        if isinstance(values, Range) or not _numeric(values):
            return self.distributions[key]
        numbers = [number for number in values.choices if not isinstance(number, str)]
        low, high = min(numbers), max(numbers)
        if all(isinstance(number, int) for number in numbers):
            return IntDistribution(int(low), int(high), log=low > 0)
        return FloatDistribution(low, high, log=low > 0)

    def relevant(self, values: Mapping[str, Any]) -> Parameters:
        """``values`` without the keys that their variant does not have."""
        variant = values.get("sae.variant", self.recipe.sae.variant)
        known = self.keys_of.get(variant, searchable_keys(variant))
        return {key: value for key, value in values.items() if key in known}

    def drawn(self, values: Mapping[str, Any]) -> Drawn:
        """``values``, of some keys of the space, as values for Optuna.

        Raises UserError when a key or value is not in the space.
        """
        return {key: self._place(key, value) for key, value in values.items()}

    def at_random(self, rng: random.Random) -> Drawn:
        """A random point, uniform over each key's scale (linear or logarithmic)."""
        return {key: _draw(distribution, rng) for key, distribution in self.distributions.items()}

    def check(self, parameters: Parameters) -> None:
        """Raise UserError when the values contradict each other or need more memory than allowed."""
        sae, training = self.recipe.with_parameters(parameters)
        if self.d_in is None:
            return
        needed = training_bytes(self.d_in, sae.d_sae, training)
        for constraint in self.recipe.sweep.constraints:
            if constraint.metric == MEMORY and constraint.excess(needed):
                raise UserError(
                    f"training d_sae {sae.d_sae:,} on activations of width {self.d_in:,} takes "
                    f"{needed:,} bytes, which breaks the constraint {constraint}"
                )

    def valid(self, parameters: Parameters) -> bool:
        """Whether ``check`` accepts the values."""
        try:
            self.check(parameters)
        except UserError:
            return False
        return True

    def grid(self) -> list[Parameters]:
        """Every valid config of a grid once, in order. Raises UserError when there is none."""
        rows = itertools.product(*(values.choices for values in self._choices()))
        configs = [self.relevant(dict(zip(self.space, row, strict=True))) for row in rows]
        once = list({text(config): config for config in configs}.values())
        valid = [config for config in once if self.valid(config)]
        if not valid:
            self.check(once[0])
        return valid

    def valid_corners(self) -> list[Parameters]:
        """The valid configs at the ends of the ranges.

        Raises UserError, with the reason for the last one, when there is none.
        """
        valid: dict[str, Parameters] = {}
        refusal: UserError | None = None
        for corner in itertools.islice(self._corners(), MOST_CORNERS):
            config = self.relevant(corner)
            try:
                self.check(config)
            except UserError as error:
                refusal = error
            else:
                valid[text(config)] = config
        if not valid:
            raise UserError(f"sweep.space leaves nothing valid: {refusal}")
        return list(valid.values())

    def _choices(self) -> Iterator[Choices]:
        for values in self.space.values():
            assert isinstance(values, Choices)  # the recipe refuses a grid of ranges
            yield values

    def _corners(self) -> Iterator[Parameters]:
        ends: list[tuple[Any, ...]] = []
        for values in self.space.values():
            if isinstance(values, Range):
                ends.append((values.low, values.high))
            else:
                ends.append(
                    (values.choices[0], values.choices[-1]) if _numeric(values) else values.choices
                )
        return (dict(zip(self.space, corner, strict=True)) for corner in itertools.product(*ends))

    def _value(self, key: str, drawn: Any) -> Any:
        values = self.space[key]
        return values.choices[drawn] if isinstance(values, Choices) and _numeric(values) else drawn

    def _place(self, key: str, value: Any) -> Any:
        values = self.space.get(key)
        if values is None:
            raise UserError(f"{key} is not in sweep.space; it has {', '.join(self.space)}")
        if isinstance(values, Choices):
            if value not in values.choices:
                listed = ", ".join(map(str, values.choices))
                raise UserError(f"{key} {value} is not in sweep.space, which has {listed}")
            return values.choices.index(value) if _numeric(values) else value
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not values.low <= value <= values.high:
            raise UserError(
                f"{key} {value} is not in sweep.space, whose range is {values.low} to {values.high}"
            )
        return value


def text(parameters: Parameters) -> str:
    """The parameters as JSON with sorted keys; equal for equal configs."""
    return json.dumps(parameters, sort_keys=True)


def _numeric(values: Choices) -> bool:
    return not any(isinstance(choice, str) for choice in values.choices)


def _ordered(values: Choices | Range) -> Choices | Range:
    if isinstance(values, Range):
        return Choices(choices=values.powers) if values.powers_of_two else values
    if not _numeric(values):
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
