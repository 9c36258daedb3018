"""A feature's track: what it was matched with from layer to layer, and at neighbouring positions."""

from functools import cached_property
from itertools import pairwise
from typing import Any

from raysae.browser.tables import PhaseResults
from raysae.sites import Site

Match = tuple[int, float | None, bool]
"""The other feature, the score, and whether the pair was kept."""


class Tracks:
    """The result of the phase ``tracking``, by site and feature."""

    def __init__(self, tracking: PhaseResults):
        self.tracking = tracking
        self._matches: dict[tuple[Site, Site], dict[int, Match]] = {}

    @cached_property
    def pairs(self) -> dict[tuple[Site, Site], float | None]:
        """The pairs of sites that were compared, each with the threshold of its scores."""
        return {
            (_site(row, "first"), _site(row, "second")): row["threshold"]
            for row in self.tracking.rows("pairs")
        }

    @cached_property
    def chains(self) -> dict[tuple[Site, int], list[tuple[Site, int]]]:
        """The chain through the layers of each compared feature, by its site and number."""
        found = {}
        for row in self.tracking.rows("chains"):
            sites = [
                Site.of_columns(layer, row["position"], row.get("hookpoint"))
                for layer in row["layers"]
            ]
            chain = list(zip(sites, row["features"], strict=True))
            found.update(dict.fromkeys(chain, chain))
        return found

    @cached_property
    def _pairs_of(self) -> dict[Site, list[tuple[Site, Site]]]:
        """The pairs that each site is in."""
        found: dict[Site, list[tuple[Site, Site]]] = {}
        for pair in self.pairs:
            for site in pair:
                found.setdefault(site, []).append(pair)
        return found

    def length(self, site: Site, feature: int) -> int | None:
        """Through how many layers the feature is followed; None where it was not compared."""
        chain = self.chains.get((site, feature))
        return None if chain is None else len(chain)

    def of(self, site: Site, feature: int) -> dict[str, Any] | None:
        """The chain with the score of each step, and the matches at neighbouring positions; None where
        the feature was not compared."""
        chain = self.chains.get((site, feature))
        beside = self._beside(site, feature)
        if chain is None and not beside:
            return None
        steps = chain or [(site, feature)]
        return {
            "chain": [[one.layer, number] for one, number in steps],
            "scores": [
                self._match(here[0], there[0], here[1], forward=True)[1]
                for here, there in pairwise(steps)
            ],
            "ends": self._end(steps[-1]),
            "beside": beside,
        }

    def _end(self, last: tuple[Site, int]) -> dict[str, Any] | None:
        """The best match in the next layer that was not kept; None at the last layer."""
        site, feature = last
        for first, second in self._pairs_of.get(site, []):
            if first == site and second.layer != site.layer:
                _, score, _ = self._match(first, second, feature, forward=True)
                threshold = self.pairs[first, second]
                return {"layer": second.layer, "score": score, "threshold": threshold}
        return None

    def _beside(self, site: Site, feature: int) -> list[list[Any]]:
        """Position, feature and score of the kept matches at neighbouring positions."""
        found = []
        for first, second in self._pairs_of.get(site, []):
            if first.layer != second.layer:
                continue
            forward = site == first
            other, score, kept = self._match(first, second, feature, forward)
            if kept:
                found.append([str((second if forward else first).position), other, score])
        return found

    def _match(self, first: Site, second: Site, feature: int, forward: bool) -> Match:
        """The match of a feature of the first site (or else of the second) in the other."""
        key = (first, second) if forward else (second, first)
        if key not in self._matches:
            self._matches[key] = self._read(first, second, forward)
        return self._matches[key].get(feature, (-1, None, False))

    def _read(self, first: Site, second: Site, forward: bool) -> dict[int, Match]:
        here, there = ("first", "second") if forward else ("second", "first")
        rows = self.tracking.rows(
            "matches", first_layer=first.layer, first_position=str(first.position),
            second_layer=second.layer, second_position=str(second.position),
            hookpoint=first.hookpoint,
        )  # fmt: skip
        return {row[here]: (row[there], row["score"], bool(row["kept"])) for row in rows}


def _site(row: dict[str, Any], which: str) -> Site:
    return Site.of_columns(row[f"{which}_layer"], row[f"{which}_position"], row.get("hookpoint"))
