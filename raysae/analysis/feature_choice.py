"""Which features are ablated, and random ones of equal activity beside them.

Shapes: N rows, F d_sae.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from raysae.activations import Store
from raysae.activations.schema import to_torch
from raysae.errors import UserError
from raysae.sae import SAE
from raysae.sites import PATTERNS, Site

TOGETHER = 2**24
"""Features of rows that are in memory at a time."""
NEAREST = 4
"""A control is drawn from so many times as many features of the nearest density as are needed."""
WITHIN = 2.0
"""The densities of a feature and its control differ by at most this factor."""
IsToken = Callable[[int], bool]


@dataclass(frozen=True)
class Activity:
    """How active each feature of a site is over its training rows, ``[F]``."""

    rows: int
    density: NDArray[np.float64]
    """Fraction of the rows on which it fires."""
    mean: NDArray[np.float64]
    """Mean over all rows: density times the mean where it fires."""
    correlation: NDArray[np.float64]
    """Point-biserial correlation with whether the row's token matches the pattern; zero without one."""


@torch.no_grad()
def activity_of(
    store: Store, site: Site, sae: SAE, most: int, is_token: IsToken | None, alive: Callable[[], None]
) -> Activity:  # fmt: skip
    """The activity of a site's features over its first ``most`` training rows."""
    size = sae.config.d_sae
    fires, total, square, product = (np.zeros(size) for _ in range(4))
    rows, marked = 0, 0.0
    for x_ND, token_N in _blocks(store, site, most):
        mark_N = np.array([is_token is not None and is_token(int(t)) for t in token_N], np.float64)
        marks_N = torch.from_numpy(mark_N)
        for piece_ND, piece_N in zip(
            x_ND.split(max(1, TOGETHER // size)), marks_N.split(max(1, TOGETHER // size)), strict=True
        ):  # fmt: skip
            features_NF = sae.encode(piece_ND.to(sae.W_dec)).double().cpu()
            fires += (features_NF > 0).sum(dim=0).numpy()
            total += features_NF.sum(dim=0).numpy()
            square += features_NF.square().sum(dim=0).numpy()
            product += (features_NF * piece_N[:, None]).sum(dim=0).numpy()
            alive()
        rows, marked = rows + len(x_ND), marked + float(mark_N.sum())
    if not rows:
        raise UserError(
            f"{store.place}: {site} has no training rows; its features have no activity"
        )
    share = marked / rows
    spread = np.sqrt(np.maximum(square / rows - (total / rows) ** 2, 0) * share * (1 - share))
    covariance = product / rows - total / rows * share
    correlation = np.divide(covariance, spread, out=np.zeros(size), where=spread > 0)
    return Activity(rows, fires / rows, total / rows, correlation)


def _blocks(
    store: Store, site: Site, most: int
) -> Iterator[tuple[torch.Tensor, NDArray[np.int64]]]:
    for shard in store.shards(site, "train"):
        table = store.read(shard, "train").slice(0, most)
        most -= len(table)
        if len(table):
            x_ND = torch.cat(to_torch(table["activation"], store.manifest.dtype))
            yield x_ND, table["token_id"].to_numpy()
        if most <= 0:
            return


def token_matcher(by: str, decode: Callable[[list[int]], str]) -> IsToken:
    """Whether a token's own text matches a pattern: a name such as ``numbers``, or an expression.

    Raises UserError when it is no expression.
    """
    try:
        expression = re.compile(PATTERNS.get(by, by))
    except re.error as error:
        raise UserError(
            f"ablation.by {by!r}: neither activity, nor a pattern ({', '.join(PATTERNS)}), nor a regular "
            f"expression ({error})"
        ) from None
    known: dict[int, bool] = {}

    def is_token(number: int) -> bool:
        if number not in known:
            known[number] = bool(expression.search(decode([number])))
        return known[number]

    return is_token


def chosen(activity: Activity, most: int, by_pattern: bool) -> list[int]:
    """The features of the highest activity, or of the highest correlation; only such as fire."""
    score = activity.correlation if by_pattern else activity.mean
    live = np.flatnonzero(activity.density > 0)
    order = live[np.argsort(-score[live], kind="stable")]
    return [int(feature) for feature in order[:most]]


def matched_controls(
    activity: Activity, features: Sequence[int], each: int, seed: int
) -> dict[int, list[int]]:
    """For each feature ``each`` others that fire, drawn from those of the nearest density, which is at
    most ``WITHIN`` times as high or low; no feature is drawn twice. Where too few are left, fewer are
    drawn, or none."""
    generator = np.random.default_rng(seed)
    free = set(np.flatnonzero(activity.density > 0).tolist()) - set(features)
    found: dict[int, list[int]] = {feature: [] for feature in features}
    for feature in generator.permutation(np.array(features, np.int64)):
        left = np.array(sorted(free), np.int64)
        if not len(left):
            break
        apart = np.abs(np.log(activity.density[left] / max(activity.density[feature], 1e-12)))
        order = np.argsort(apart, kind="stable")[: NEAREST * each]
        near = left[order[apart[order] <= np.log(WITHIN)]]
        drawn = generator.permutation(near)[:each].tolist()
        found[int(feature)] = drawn
        free -= set(drawn)
    return found
