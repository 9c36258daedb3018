"""Dictionaries compared by their live decoder rows, beside random ones of the same shapes.

``stability`` is raysae's: the mean cosine of the best one-to-one match of live rows
(``raysae.sae.dictionary``). Chance is the same figure with the second dictionary random: isotropic unit
rows, and rows of the second's own covariance, which lie where its rows lie.

Shapes: D d_in, F d_sae, L live latents.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from raysae.analysis.intervals import bootstrap_ratio, known
from raysae.analysis.matching import Matrix, assigned, of_moments, unit_rows
from raysae.records.tables import read_table, write_table
from raysae.sae.dictionary import best_match
from raysae.sites import Site
from raysae.storage.files import read_json, write_json

COMPARED, FEATURES = "compared.json", "features.parquet"


@dataclass(frozen=True)
class Dictionary:
    """An SAE's decoder, and which of its latents are live."""

    W_dec_FD: Tensor
    fires_F: Tensor
    """On how many of the rows each latent is active."""
    rows: int

    @property
    def live_LD(self) -> Tensor:
        """The decoder rows of live latents."""
        return self.W_dec_FD[self.fires_F > 0]

    def densest(self, most: int) -> np.ndarray:
        """The numbers of up to ``most`` live latents, the densest, in order."""
        live = np.flatnonzero(self.fires_F.numpy() > 0)
        order = np.argsort(-self.fires_F.numpy()[live], kind="stable")
        return np.sort(live[order[:most]])


@dataclass(frozen=True)
class Agreement:
    """Two dictionaries compared."""

    kind: str
    """``seeds`` or ``layers``."""
    sites: list[str]
    first: str
    second: str
    live: list[int]
    matched: int
    """Live features of the first that were matched one by one."""
    stability: float | None
    low: float | None
    high: float | None
    """The 95% interval of the matched features' mean cosine, over features."""
    permuted: float | None
    """The stability of the first with itself in another order: 1."""
    chance: float | None
    chance_least: float | None
    chance_most: float | None
    """The stability with random isotropic rows: the mean of several draws, the least and the most."""
    chance_alike: float | None
    """With random rows of the second's covariance."""
    universal: int
    """Matched features with at least the universal cosine."""
    universal_chance: float | None
    """The share that random rows of the second's covariance give."""


@dataclass(frozen=True)
class Compared:
    """All that an item found."""

    agreements: list[Agreement]
    features: list[dict[str, Any]]
    """The first dictionary's matched features: their least cosine over the others, and their density."""


def compare(
    kind: str, sites: Sequence[Site], labels: Sequence[str], found: Sequence[Dictionary],
    settings: Any, seed: int, alive: Callable[[], None],
) -> Compared:  # fmt: skip
    """Compare all pairs of dictionaries, and list the first's features with their worst match."""
    folders, agreements, cosines = [site.folder for site in sites], [], []
    for (i, one), (j, other) in combinations(enumerate(found), 2):
        labelled = Labelled(kind, folders, labels[i], labels[j])
        agreement, cosine = _pair(labelled, one, other, settings, [seed, i, j])
        agreements.append(agreement)
        if i == 0:
            cosines.append(cosine)
        alive()
    return Compared(agreements, _features(kind, folders, found[0], cosines, settings))


@dataclass(frozen=True)
class Labelled:
    """The names of a pair."""

    kind: str
    sites: list[str]
    first: str
    second: str


def _pair(
    labelled: Labelled, one: Dictionary, other: Dictionary, settings: Any, seed: list[int]
) -> tuple[Agreement, dict[int, float]]:
    """Two dictionaries compared, and the cosine of each matched feature of the first."""
    mine, theirs = one.densest(settings.features), other.densest(settings.features)
    first_LD, second_LD = unit_rows(one.W_dec_FD[mine]), unit_rows(other.W_dec_FD[theirs])
    live = [len(one.live_LD), len(other.live_LD)]
    cosine, places = _matched(first_LD, second_LD)
    chance = [_matched(first_LD, rows)[0].mean() for rows in _isotropic(second_LD, settings, seed)]
    alike = [_matched(first_LD, rows)[0] for rows in _of_covariance(second_LD, settings, seed)]
    low, high = bootstrap_ratio(cosine, None, seed[0])
    order = torch.randperm(live[0], generator=torch.Generator().manual_seed(seed[0]))
    agreement = Agreement(
        **asdict(labelled), live=live, matched=len(cosine),
        stability=known(best_match(one.live_LD, other.live_LD)), low=known(low), high=known(high),
        permuted=known(best_match(one.live_LD, one.live_LD[order])),
        chance=_mean(chance), chance_least=known(min(chance, default=np.nan)),
        chance_most=known(max(chance, default=np.nan)),
        chance_alike=_mean([one.mean() for one in alike]),
        universal=int((cosine >= settings.universal).sum()),
        universal_chance=_mean([(one >= settings.universal).mean() for one in alike]),
    )  # fmt: skip
    return agreement, dict(zip(mine[places].tolist(), cosine.tolist(), strict=True))


def _mean(values: Sequence[float]) -> float | None:
    return known(float(np.mean(values))) if len(values) else None


def _matched(first_LD: Matrix, second_LD: Matrix) -> tuple[Matrix, np.ndarray]:
    """The cosines of the best match, and the places of the first's rows that have one."""
    found = assigned(first_LD @ second_LD.T)
    return found.score, found.first


def _isotropic(rows_LD: Matrix, settings: Any, seed: list[int]) -> Iterator[Matrix]:
    """Random unit rows of the same shape; none where there is no row."""
    for draw in range(settings.draws if len(rows_LD) else 0):
        random = np.random.default_rng([*seed, 0, draw])
        yield _normed(random.standard_normal(rows_LD.shape))


def _of_covariance(rows_LD: Matrix, settings: Any, seed: list[int]) -> Iterator[Matrix]:
    """Random unit rows: sums of the rows with normal weights, which have their second moments."""
    for draw in range(settings.draws if len(rows_LD) else 0):
        random = np.random.default_rng([*seed, 1, draw])
        yield of_moments(rows_LD, random)


def _normed(rows_LD: Matrix) -> Matrix:
    return rows_LD / np.linalg.norm(rows_LD, axis=1, keepdims=True)


def _features(
    kind: str, sites: list[str], first: Dictionary, cosines: Sequence[dict[int, float]],
    settings: Any,
) -> list[dict[str, Any]]:  # fmt: skip
    """The first dictionary's compared features; one that has no match somewhere has no cosine."""
    rows = []
    for feature in first.densest(settings.features).tolist():
        least = min(one.get(feature, np.nan) for one in cosines)
        matched = all(feature in one for one in cosines)
        rows.append(
            {
                "kind": kind, "site": sites[0], "other": sites[-1], "feature": feature,
                "density": int(first.fires_F[feature]) / max(first.rows, 1),
                "least_cosine": least if matched else None,
                "universal": matched and least >= settings.universal,
            }
        )  # fmt: skip
    return rows


def save(folder: Path, compared: Compared) -> None:
    """Write what an item found."""
    write_json(folder / COMPARED, [asdict(one) for one in compared.agreements])
    if compared.features:
        write_table(folder / FEATURES, compared.features)


def read(folder: Path) -> Compared:
    """What ``save`` wrote. Raises UserError when it is damaged."""
    agreements = [Agreement(**one) for one in read_json(folder / COMPARED)]
    features = folder / FEATURES
    return Compared(agreements, read_table(features) if features.is_file() else [])
