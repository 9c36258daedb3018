"""What the controls say of the chosen SAE: whether it explains its rows better than they do.

A control counts as reached where the SAE leaves about as much variance unexplained: where the
difference is within its noise, which is twice the standard error of the two figures (of the held-out
rows, and of the seeds where there are several), and at least ``LEAST_NOISE`` of what is unexplained,
of a shuffled model ``SHUFFLE_NOISE``.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import stdev
from typing import Any

LEAST_NOISE = 0.02
"""Differences up to this fraction of the unexplained variance count as noise."""
AGREEMENT_NOISE = 0.05
"""Differences between two agreements of seeds up to this count as noise."""
SHUFFLE_NOISE = 0.2
"""The same of a shuffled model: two shuffles of one model differ by up to 15%
(``scripts/controls_check.py --part random``)."""
NAMES = {
    "frozen_decoder": "a dictionary that stayed random",
    "gaussian": "Gaussian rows of the same mean and covariance",
    "pca": "PCA",
    "shuffled_model": "the model with shuffled weights",
}
"""The controls in words."""
SURE, UNSURE, NOT_BETTER = "better", "unclear", "no better"


@dataclass(frozen=True)
class Chosen:
    """The figures of the chosen trial."""

    explained_variance: float
    by_seed: Sequence[float] = ()
    """The explained variance of each seed; empty where it is not known."""
    stability: float | None = None


@dataclass(frozen=True)
class Comparison:
    """The SAE beside one control."""

    name: str
    explained_variance: float
    noise: float
    """Of the difference between the two explained variances."""
    stability: float | None = None

    @property
    def unexplained(self) -> float:
        """What the control leaves unexplained."""
        return max(1 - self.explained_variance, 1e-12)

    def reached_by(self, chosen: Chosen) -> bool:
        """Whether the SAE explains no more than the control, but for noise."""
        return chosen.explained_variance - self.explained_variance <= self.noise

    def agrees_less(self, chosen: Chosen) -> bool:
        """Whether the SAE's seeds agree more than the control's; false where either has one seed."""
        if chosen.stability is None or self.stability is None:
            return False
        return chosen.stability - self.stability > AGREEMENT_NOISE


def compared(chosen: Chosen, controls: Mapping[str, Mapping[str, Any]]) -> list[Comparison]:
    """The controls that have an explained variance, each with the noise of its difference."""
    known = [one.get("standard_error") for one in controls.values()]
    errors = [error for error in known if error is not None and error == error]
    of_rows = max(errors, default=0.0)
    several = [one for one in chosen.by_seed if one == one]
    of_seeds = stdev(several) if len(several) > 1 else 0.0
    found = []
    for name, figures in controls.items():
        value = figures.get("explained_variance")
        if value is None or value != value:
            continue
        noise = 2 * math.sqrt(2 * of_rows**2 + of_seeds**2)
        least = SHUFFLE_NOISE if name == "shuffled_model" else LEAST_NOISE
        noise = max(least * max(1 - value, 0.0), noise)
        found.append(Comparison(name, value, noise, figures.get("stability")))
    return found


def verdict(
    chosen: Chosen, controls: Mapping[str, Mapping[str, Any]], k: int
) -> dict[str, str | None]:
    """``verdict`` (``better``, ``no better``, ``unclear``; None without a figure to compare) and, in
    ``words``, what it rests on. ``k`` is the number of components that PCA has."""
    if math.isnan(chosen.explained_variance):
        return {"verdict": None, "words": "no verdict: the SAE's explained variance is undefined"}
    found = compared(chosen, controls)
    if not found:
        return {"verdict": None, "words": "no verdict: there is no control to compare with"}
    reached = [one for one in found if one.reached_by(chosen)]
    if not reached:
        nearest = max(found, key=lambda one: one.explained_variance)
        times = nearest.unexplained / max(1 - chosen.explained_variance, 1e-12)
        words = (
            f"better than the controls: the nearest, {_named(nearest, k)}, leaves {times:.2f} times as "
            f"much variance unexplained"
        )
        return {"verdict": SURE, "words": words + _agreement(chosen, found)}
    listed = "; ".join(f"{_named(one, k)}: {one.explained_variance:.4f}" for one in reached)
    words = (
        f"no better than the controls: the SAE's explained variance is "
        f"{chosen.explained_variance:.4f}, and without a dictionary that was learned from these rows it "
        f"is about as much or more ({listed}; noise {max(one.noise for one in reached):.4f})"
    )
    if any(one.agrees_less(chosen) for one in reached):
        words = words.replace("no better than the controls", "unclear", 1)
        return {"verdict": UNSURE, "words": f"{words}; but{_more(chosen, reached)}"}
    return {"verdict": NOT_BETTER, "words": words + _agreement(chosen, reached)}


def _named(one: Comparison, k: int) -> str:
    return f"{NAMES[one.name]} with {k} components" if one.name == "pca" else NAMES[one.name]


def _agreement(chosen: Chosen, found: Sequence[Comparison]) -> str:
    """How far seeds agree, where both the SAE and a control have several."""
    known = [one for one in found if one.stability is not None]
    if chosen.stability is None or not known:
        return ""
    if any(one.agrees_less(chosen) for one in known):
        return f";{_more(chosen, known)}"
    most = max(one.stability for one in known if one.stability is not None)
    return f"; its seeds agree no more than the control's ({chosen.stability:.3f} and {most:.3f})"


def _more(chosen: Chosen, found: Sequence[Comparison]) -> str:
    """That the SAE's seeds agree more, with the figures."""
    most = max(one.stability for one in found if one.stability is not None)
    return f" its seeds agree more than the control's ({chosen.stability:.3f} and {most:.3f})"
