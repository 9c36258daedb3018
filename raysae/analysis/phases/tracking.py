"""Tracking: features matched from layer to layer and from position to position."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import Field

from raysae.analysis.chains import neighbours
from raysae.analysis.matching import Measure, Null, features_of, matched
from raysae.analysis.phase import Alive, Item, Phase, Result
from raysae.analysis.site_latents import common_rows, read_latents
from raysae.analysis.subject import Subject
from raysae.analysis.track_files import Pair, save_means, save_pair
from raysae.analysis.track_result import summary
from raysae.config.section import Positive, Section
from raysae.errors import UserError
from raysae.sites import Site

LEAST_SEQUENCES = 20
"""Fewer common sequences tell nothing about a correlation."""
TRAJECTORY_SPLITS = ("validation", "test", "train")


class TrackingSettings(Section):
    """How features are matched."""

    measure: Measure = "mean"
    """What is matched by: ``cosine`` of the decoder rows, ``correlation`` of the activations over the
    validation rows that both sites have, or the ``mean`` of the two."""
    features: Positive = 1024
    """Features of a site that are matched, at most: the densest. Time grows with the cube."""
    fires: Positive = 5
    """A feature is matched when it is active on at least so many of the common rows."""
    rows: Positive = 50_000
    """Validation rows of a site that are compared, at most."""
    null: Null = "moments"
    """What the second decoder is in the permutation null: random rows of its own second ``moments``,
    which lie where activations vary, or its rows turned by a random ``rotation``. A rotation leaves
    that out: it takes unrelated features of a narrow space for matches."""
    permutations: Positive = 20
    """Draws of the permutation null."""
    false_matches: Annotated[float, Field(gt=0, lt=1)] = 0.01
    """The share of features that would be matched where nothing belongs together: it sets the
    threshold."""
    trajectory_rows: Positive = 50_000
    """Rows of a site whose sequences get trajectories, at most: validation first, then test, then
    training rows."""


class Tracking(Phase):
    """Births, deaths and persistence of features through layers and positions."""

    name = "tracking"
    title = "Tracking: features from layer to layer and from position to position"
    Settings = TrackingSettings

    def check(self, subject: Subject, settings: TrackingSettings) -> None:
        """Two neighbouring sites with validation rows are needed."""
        subject.need_rows()
        if not self._pairs(subject):
            raise UserError(
                f"{subject.place}: its {len(subject.sites)} sites are no two layers of one position, and "
                "no two numbered positions of one layer; train an atlas of several layers (atlas.layers)"
            )
        empty = [site for site in subject.sites if not subject.store.entry(site).rows.validation]
        if empty:
            raise UserError(
                f"{subject.store.place}: {empty[0]} has no validation rows; make the store with "
                "source.validation above 0"
            )

    def _pairs(self, subject: Subject) -> list[tuple[Site, Site, bool]]:
        return [
            (first, second, by_position)
            for by_position in (False, True)
            for first, second in neighbours(subject.sites, by_position)
        ]

    def items(self, subject: Subject, settings: TrackingSettings) -> list[Item]:
        """A pair of neighbouring sites each."""
        return [
            Item(_key(first, second), (first, second)) for first, second, _ in self._pairs(subject)
        ]

    def work(
        self, subject: Subject, settings: TrackingSettings, item: Item, folder: Path, alive: Alive
    ) -> None:
        """Match a pair of sites; of a site's layers also keep the means of each sequence."""
        first, second = item.sites
        by_position = first.layer == second.layer
        seed = [subject.seed, *np.frombuffer(item.key.encode(), np.uint8).tolist()]
        save_pair(folder, match_sites(subject, settings, first, second, by_position, seed, alive))
        if by_position:
            return
        last = (second, first) if _is_last(subject.sites, second) else (first,)
        for site in last:
            sae = subject.atlas[site]
            rows = settings.trajectory_rows
            latents = read_latents(subject.store, site, sae, TRAJECTORY_SPLITS, rows, alive)
            save_means(folder, site, *latents.sequence_means())

    def collect(
        self, subject: Subject, settings: TrackingSettings, folders: Mapping[Item, Path]
    ) -> Result:
        """Chains through the layers, counts with intervals, and trajectories."""
        return summary(folders, settings, subject.seed)

    def draw(self, result: Result, settings: TrackingSettings, source: str, folder: Path) -> None:
        """The flow of features through the layers, and what the scores are beside the null's."""
        from raysae.analysis.track_plots import draw_flow, draw_persistence

        if result.tables.get("flow"):
            draw_flow(result.tables["flow"], source, folder / "flow.png")
        if result.tables.get("pairs"):
            draw_persistence(result.tables["pairs"], source, folder / "kept.png")


def match_sites(
    subject: Subject, settings: TrackingSettings, first: Site, second: Site, by_position: bool,
    seed: list[int], alive: Alive,
) -> Pair:  # fmt: skip
    """Match the features of two sites over their common validation rows.

    Raises UserError when they have too few in common, or a site has no feature that can be matched.
    """
    store, sites = subject.store, (first, second)
    one, other = (
        read_latents(store, site, subject.atlas[site], ("validation",), settings.rows, alive)
        for site in sites
    )
    both = common_rows(one, other, by_sequence=by_position)
    sequences = len(np.unique(both[0].sequence))
    if sequences < LEAST_SEQUENCES:
        raise UserError(
            f"{first} and {second} have {len(both[0])} rows of {sequences} sequences in common; expected "
            f"at least {LEAST_SEQUENCES} sequences: make a store with more validation sequences"
        )
    sides, live = [], []
    for site, rows in zip(sites, both, strict=True):
        features, lively = features_of(
            rows, subject.atlas[site].W_dec, settings.fires, settings.features
        )
        if not len(features):
            raise UserError(
                f"{site}: none of its {lively} live features is active on {settings.fires} of "
                f"{len(rows):,} rows; lower tracking.fires or take more validation rows"
            )
        sides.append(features)
        live.append(lively)
    found = matched(
        sides[0], sides[1], settings.measure, settings.null, settings.permutations,
        settings.false_matches, seed, alive,
    )  # fmt: skip
    return Pair.of(sites, (sides[0], sides[1]), (live[0], live[1]), found, sequences)


def _key(first: Site, second: Site) -> str:
    return "--".join(site.folder.replace("/", ",") for site in (first, second))


def _is_last(sites: list[Site], site: Site) -> bool:
    """Whether no higher layer has the site's position."""
    return not any(
        other.layer > site.layer
        and (str(other.position), other.hookpoint) == (str(site.position), site.hookpoint)
        for other in sites
    )
