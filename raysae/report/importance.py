"""How much of the variance of a sweep's outcome each setting accounts for: fANOVA, by Optuna."""

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from raysae.records.rows import TrialRow

FEWEST_TRIALS = 20
"""Trials from which on an importance is more than chance."""
SEED = 0


@dataclass(frozen=True)
class Importance:
    """The share of each setting, from the largest; or why there is none."""

    shares: Mapping[str, float] = field(default_factory=dict)
    reason: str = ""


def importance_of(rows: Sequence[TrialRow], settings: Sequence[str]) -> Importance:
    """The importance of ``settings`` (dotted keys) for explained variance over the measured ``rows``.

    Settings that only some of the trials have, as those of one variant, are left out.
    """
    varied = [
        key
        for key in settings
        if all(row.get(key) is not None for row in rows) and len({row.get(key) for row in rows}) > 1
    ]
    if len(varied) < 2:
        what = f"{varied[0]} alone was varied" if varied else "no setting was varied in all trials"
        return Importance(reason=f"not computed: {what}")
    if len(rows) < FEWEST_TRIALS:
        return Importance(
            reason=f"not computed: {len(rows)} measured trials are too few to tell "
            f"({FEWEST_TRIALS} are needed)"
        )
    if len({row.explained_variance for row in rows}) == 1:
        return Importance(reason="not computed: all trials have the same explained variance")
    return Importance(_shares(rows, varied))


def _shares(rows: Sequence[TrialRow], settings: Sequence[str]) -> dict[str, float]:
    import optuna

    with _quiet():
        study = optuna.create_study(direction="maximize")
        ranges = {key: _range([row.get(key) for row in rows]) for key in settings}
        for row in rows:
            study.add_trial(
                optuna.trial.create_trial(
                    params={key: row.get(key) for key in settings}, distributions=ranges,
                    value=row.explained_variance,
                )
            )  # fmt: skip
        evaluator = optuna.importance.FanovaImportanceEvaluator(seed=SEED)
        found = optuna.importance.get_param_importances(study, evaluator=evaluator)
    return {key: value for key, value in found.items() if math.isfinite(value)}


def _range(values: Sequence[Any]) -> Any:
    """What Optuna may suppose of a setting with these values."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    if not all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        return CategoricalDistribution(sorted({*values}, key=str))
    low, high = float(min(values)), float(max(values))
    return FloatDistribution(low, high, log=low > 0 and high / low >= 4)


@contextmanager
def _quiet() -> Iterator[None]:
    """Optuna says nothing of the study that is made here."""
    logger = logging.getLogger("optuna")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
