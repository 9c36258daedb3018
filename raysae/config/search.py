"""The recipe's search: which SAE configs are tried, and where, and how one of them is chosen."""

import difflib
import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, Discriminator, Field, Tag, model_validator

from raysae.config.section import Fraction, PositionKey, Positive, Section
from raysae.metrics import measured_in_model, objectives


def _known_metric(name: str) -> str:
    known = objectives()
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1)
        meant = f"did you mean {close[0]}? " if close else ""
        raise ValueError(f"{name!r} is no metric of a search; {meant}known are {', '.join(known)}")
    return name


Metric = Annotated[str, AfterValidator(_known_metric)]
"""A metric that a search may optimise or bound; see ``raysae.metrics``."""
Rule = Literal[
    "auto", "parsimonious", "knee", "stable_knee", "ev_floor_then_min_dead", "max_ev", "pareto"
]
LARGEST_GRID = 100_000
"""The most configs of a grid."""
Sampler = Literal["tpe", "gp", "nsga2", "random", "grid", "list"]
Control = Literal["frozen_decoder", "gaussian", "pca", "shuffled_model"]
CHEAP: tuple[Control, ...] = ("frozen_decoder", "gaussian", "pca")
"""The controls that need no model."""


class Choices(Section):
    """Some values to choose from."""

    choices: Annotated[tuple[int | float | str, ...], Field(min_length=1)]
    """The values; numbers are searched in their order."""


class Range(Section):
    """A range of numbers; of whole numbers where both ends are whole."""

    low: int | float
    """The smallest value."""
    high: int | float
    """The largest value."""
    log: bool = False
    """Whether to search on a logarithmic scale."""
    powers_of_two: bool = False
    """Whether only the powers of two in the range are meant."""

    @model_validator(mode="after")
    def _ordered(self) -> "Range":
        if self.low > self.high:
            raise ValueError(f"low {self.low} is above high {self.high}")
        if self.log and self.low <= 0:
            raise ValueError(f"low is {self.low}; a logarithmic range starts above 0")
        if self.powers_of_two and not self.powers:
            raise ValueError(f"there is no power of two from {self.low} to {self.high}")
        return self

    @property
    def powers(self) -> tuple[int, ...]:
        """The powers of two in the range, from 1 on."""
        top = max(int(self.high), 0).bit_length()
        return tuple(2**n for n in range(top) if self.low <= 2**n <= self.high)


def _kind_of_values(value: Any) -> str:
    listed = "choices" in value if isinstance(value, dict) else isinstance(value, Choices)
    return "choices" if listed else "range"


Values = Annotated[
    Annotated[Choices, Tag("choices")] | Annotated[Range, Tag("range")],
    Discriminator(_kind_of_values),
]


def _number_of(values: Choices | Range) -> int:
    """The number of values of a grid's key."""
    return len(values.choices if isinstance(values, Choices) else values.powers)


class SiteKey(Section):
    """One layer at one position."""

    layer: int
    """The layer."""
    position: PositionKey
    """The position."""
    hookpoint: str | None = None
    """The hookpoint; null takes the store's first."""


class Objective(Section):
    """What the search optimises."""

    metric: Metric
    """A held-out metric."""
    goal: Literal["maximize", "minimize"]
    """Which way is better."""


class Constraint(Section):
    """What a trial must keep to; the sampler learns to avoid those that do not, and none of them is
    chosen. A search or a grid leaves out configs whose ``training_bytes`` lie outside."""

    metric: Metric
    """A held-out metric; or ``training_bytes``, the memory that training one SAE of the config takes, an
    upper estimate."""
    at_most: float | None = None
    """The largest value that is allowed."""
    at_least: float | None = None
    """The smallest value that is allowed."""

    @model_validator(mode="after")
    def _bounded(self) -> "Constraint":
        if self.at_most is None and self.at_least is None:
            raise ValueError("a constraint needs at_most or at_least")
        return self

    def excess(self, value: float | None) -> float:
        """How far ``value`` lies outside; 0 inside, infinite when it is undefined."""
        if value is None or value != value:
            return float("inf")
        above = 0.0 if self.at_most is None else value - self.at_most
        below = 0.0 if self.at_least is None else self.at_least - value
        return max(above, below, 0.0)

    def __str__(self) -> str:
        bounds = (("<=", self.at_most), (">=", self.at_least))
        return " and ".join(f"{self.metric} {sign} {x:g}" for sign, x in bounds if x is not None)


class SweepConfig(Section):
    """Which SAE configs are tried, and where."""

    enabled: bool = True
    """Whether to search. False trains the atlas with ``sae`` and ``training`` as they are given, as
    ``python -m raysae.atlas`` does; the other keys of the search then have no effect."""
    layer: int | None = None
    """The layer swept; null takes the middle of the store's layers."""
    position: PositionKey | None = None
    """The position swept; null takes the store's last."""
    hookpoint: str | None = None
    """The hookpoint swept, of a store of several; null takes the first of ``source.hookpoint``."""
    sites: tuple[SiteKey, ...] = ()
    """Several sites to sweep at once, such as ``{layer: 8, position: -1}`` (and ``hookpoint``), instead
    of ``layer``, ``position`` and ``hookpoint``: each config is trained at every one, and figures are
    their means; ``explained_variance_worst`` is that of the worst."""
    per_layer: Literal["all"] | Annotated[tuple[int, ...], Field(min_length=1)] | None = None
    """Layers (or all of the store) that each get a search and a sweet spot of their own, by which the
    atlas of that layer is trained; a run for each, in a folder of this one."""
    sampler: Sampler = "tpe"
    """How configs are proposed: Optuna's TPE, Gaussian process (gp) or NSGA-II, at random, every
    combination, or ``configs``."""
    trials: Positive = 8
    """Trials to run (a list or a grid runs as many as it holds, at most these)."""
    space: dict[str, Values] = {  # noqa: RUF012  (pydantic copies it)
        "sae.d_sae": Choices(choices=(32, 64, 128, 256)),
        "sae.k": Choices(choices=(1, 2, 4, 8, 16, 32)),
    }
    """Recipe keys under ``sae.`` and ``training.`` with the values to search; a key that a trial's
    variant does not have is left out of that trial."""
    configs: tuple[dict[str, Any], ...] = ()
    """The configs of the list sampler, such as ``{sae.d_sae: 512, sae.k: 150}``."""
    first: tuple[dict[str, Any], ...] = ()
    """Configs to try before the sampler's own; keys of the space that one leaves out are drawn."""
    warm_start: tuple[str, ...] = ()
    """Run folders whose finished trials the sampler learns from first, as far as they lie in the
    space."""
    seeds_per_trial: Positive = 1
    """Seeds each config is trained with; figures are their means, and ``stability`` says how far
    they found the same latents."""
    constraints: tuple[Constraint, ...] = ()
    """What a trial must keep to, such as ``{metric: dead_fraction, at_most: 0.1}``."""
    objectives: Annotated[tuple[Objective, ...], Field(min_length=1)] = (
        Objective(metric="explained_variance", goal="maximize"),
        Objective(metric="l0", goal="minimize"),
    )
    """What TPE, gp and NSGA-II optimise; several give them a front to spread over."""
    startup_trials: Positive = 4
    """Random trials before TPE or gp begins; NSGA-II's population."""
    proposal_lag: Positive = 2
    """Trial i is proposed from the results of trials 0 .. i-lag alone, so that timing never shows;
    at most so many trials run at once under TPE, gp and NSGA-II."""
    max_seconds_per_trial: Annotated[float, Field(gt=0)] | None = None
    """A trial that has trained for longer is stopped."""
    max_seconds: Annotated[float, Field(gt=0)] | None = None
    """No trial is begun after so many seconds of sweeping."""
    max_tokens: Positive | None = None
    """No trial is begun once so many tokens have been trained on, in all trials together."""
    early_stopping: Literal["asha", "median"] | None = None
    """Whether poor trials end early, by the first objective: ASHA (the best third continues), or those
    below the median. Who is stopped depends on timing, so two runs of one recipe may then differ."""
    grace: Fraction = 0.2
    """Fraction of its training that a trial has before it may be stopped early."""
    loss_texts: Positive = 50
    """Validation texts, at most, that the model reads with each trial's SAE in it, where an objective or
    a constraint is of the model's loss (``ce_recovered``, ``kl_recovered``, ``ce_increase``, or of an
    encoder ``final_cosine_recovered``); measured at the end of a trial."""
    controls: Literal["cheap", "all", "none"] | tuple[Control, ...] = "cheap"
    """What the choice is compared with: ``frozen_decoder``, the chosen config under a dictionary that
    stays random; ``gaussian``, the same trained on Gaussian rows of the same mean and covariance;
    ``pca`` with K components; ``shuffled_model``, the same trained on the model with shuffled weights.
    ``cheap``: all but the last; ``all``; ``none``; or a list."""
    reproducible: bool = True
    """Whether proposals wait for the trials they follow from; false never waits for a straggler, and
    two runs of one recipe then try different configs."""

    @property
    def in_model(self) -> tuple[str, ...]:
        """The metrics among objectives and constraints that are measured with the SAE in the model."""
        asked = [one.metric for one in self.objectives]
        asked += [one.metric for one in self.constraints]
        known = measured_in_model() if self.enabled else frozenset()
        return tuple(name for name in dict.fromkeys(asked) if name in known)

    @property
    def wanted_controls(self) -> tuple[Control, ...]:
        """The names of the controls, in their order, each once."""
        if self.controls == "none" or not self.enabled:
            return ()
        named = (*CHEAP, "shuffled_model") if self.controls == "all" else self.controls
        named = CHEAP if named == "cheap" else named
        return tuple(name for name in get_args(Control) if name in named)

    @model_validator(mode="before")
    @classmethod
    def _given_config(cls, data: Any) -> Any:
        """Without a search there is one config, which replaces nothing; unknown keys are refused."""
        if not isinstance(data, Mapping) or data.get("enabled") is not False:
            return data
        unknown = {key: value for key, value in data.items() if key not in cls.model_fields}
        return {**unknown, "enabled": False, "sampler": "list", "configs": ({},), "space": {}}

    @model_validator(mode="after")
    def _coherent(self) -> "SweepConfig":
        if self.sampler == "list" and not self.configs:
            raise ValueError("sampler is 'list' but configs is empty; list at least one config")
        if self.sampler != "list" and self.configs:
            raise ValueError(f"configs is for sampler 'list'; the sampler is {self.sampler!r}")
        if self.sampler != "list" and not self.space:
            raise ValueError("space is empty; give at least one key to search")
        if self.sampler == "grid":
            loose = [
                key
                for key, values in self.space.items()
                if isinstance(values, Range) and not values.powers_of_two
            ]
            if loose:
                raise ValueError(f"a grid needs choices, not a range, for {', '.join(loose)}")
            held = math.prod(map(_number_of, self.space.values()))
            if held > LARGEST_GRID:
                raise ValueError(
                    f"the grid holds {held:,} configs; expected at most {LARGEST_GRID:,}: give fewer "
                    "choices in space, or another sampler"
                )
        searched = self.sampler in ("tpe", "gp", "nsga2", "random")
        for name in ("first", "warm_start"):
            if getattr(self, name) and not searched:
                raise ValueError(f"{name} is for a sampler; the sampler is {self.sampler!r}")
        metrics: list[str] = [objective.metric for objective in self.objectives]
        metrics += [constraint.metric for constraint in self.constraints]
        if "stability" in metrics and self.seeds_per_trial < 2:
            raise ValueError(
                "stability compares seeds, but seeds_per_trial is 1; make it at least 2"
            )
        at_the_end = {"stability", *measured_in_model()}
        if self.early_stopping is not None and (
            len(self.objectives) > 1 or self.objectives[0].metric in at_the_end
        ):
            raise ValueError(
                "early_stopping compares trials by one objective as they go; give a single one in "
                "sweep.objectives, such as {metric: explained_variance, goal: maximize}"
            )
        if "explained_variance_worst" in metrics and len(self.sites) < 2:
            raise ValueError("explained_variance_worst compares sites; list several in sweep.sites")
        if self.sites and (self.layer, self.position, self.hookpoint) != (None, None, None):
            raise ValueError(
                "sites stands instead of layer, position and hookpoint; leave those out"
            )
        if self.per_layer is not None and (self.sites or self.layer is not None):
            raise ValueError("per_layer stands instead of layer and sites; leave those out")
        if len(set(self.sites)) < len(self.sites):
            raise ValueError("sites names one site twice")
        return self


class SelectConfig(Section):
    """How the sweet spot is chosen among the trials."""

    rule: Rule = "auto"
    """The rule that decides; what the others would choose is recorded too. ``auto`` combines
    indicators, gives intervals and says how sure it is; ``pareto`` leaves the
    choice among the front to you."""
    trial: int | None = None
    """Your own choice among the finished trials; the rules are then only recorded."""
    tolerance: Fraction = 0.05
    """parsimonious: fraction of the best explained variance that may be given up."""
    ev_floor: float = 0.9
    """ev_floor_then_min_dead: the least explained variance."""
    max_l0: float | None = None
    """Trials with more active latents a row are out."""
    max_dead_fraction: float | None = None
    """Trials with a larger fraction of dead latents are left out."""
