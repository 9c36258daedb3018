"""Chains: features that are matched from layer to layer at one position, and what they do in a sequence.

Shapes: S sequences, F features.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raysae.sites import Position, Site

Feature = int
Links = Mapping[Feature, Feature]
"""The next layer's feature of each feature that is kept."""


@dataclass(frozen=True)
class Chain:
    """A feature followed through the layers."""

    sites: tuple[Site, ...]
    """Neighbouring layers at one position, from the first."""
    features: tuple[Feature, ...]
    """The feature at each of them."""

    @property
    def length(self) -> int:
        """The number of layers."""
        return len(self.features)


@dataclass
class Line:
    """Neighbouring layers at one position of one hookpoint, with the matches between them."""

    sites: list[Site]
    present: list[set[Feature]]
    """The features that were compared at each site."""
    links: list[Links] = field(default_factory=list)
    """From each site to the next."""

    @property
    def position(self) -> Position:
        """The position."""
        return self.sites[0].position

    def chains(self) -> list[Chain]:
        """Every feature in the one chain that it belongs to, by first layer and feature."""
        found = []
        reached: set[Feature] = set()
        for number, there in enumerate(self.present):
            found += [self._from(number, feature) for feature in sorted(there - reached)]
            reached = set(self.links[number].values()) if number < len(self.links) else set()
        return found

    def _from(self, start: int, feature: Feature) -> Chain:
        features = [feature]
        for links in self.links[start:]:
            if features[-1] not in links:
                break
            features.append(links[features[-1]])
        return Chain(tuple(self.sites[start : start + len(features)]), tuple(features))


def neighbours(sites: Sequence[Site], by_position: bool) -> list[tuple[Site, Site]]:
    """Pairs of neighbouring layers at one position, or, with ``by_position``, of neighbouring numbered
    positions at one layer (counted from one end), each of one hookpoint."""
    found = []
    for group in _groups(sites, by_position).values():
        found += list(pairwise(group))
    return found


def _groups(sites: Sequence[Site], by_position: bool) -> dict[Any, list[Site]]:
    groups: dict[Any, list[Site]] = {}
    for site in sorted(sites):
        if not by_position:
            groups.setdefault((str(site.position), site.hookpoint), []).append(site)
        elif isinstance(site.position, int):
            key = (site.layer, site.position < 0, site.hookpoint)
            groups.setdefault(key, []).append(site)
    return groups


def lines_of(
    links: Mapping[tuple[Site, Site], tuple[set[Feature], set[Feature], Links]],
) -> list[Line]:
    """The lines that pairs of neighbouring layers make up; a pair that is missing ends a line.

    Each pair has the features compared at the first and the second site, and those kept.
    """
    lines: list[Line] = []
    open_lines: dict[Site, Line] = {}
    for (first, second), (here, there, kept) in sorted(links.items(), key=lambda one: one[0]):
        line = open_lines.pop(first, None)
        if line is None:
            line = Line([first], [set()])
            lines.append(line)
        line.present[-1] |= here
        line.sites.append(second)
        line.present.append(set(there))
        line.links.append(kept)
        open_lines[second] = line
    return lines


def trajectories(
    chains: Sequence[Chain], means: Mapping[Site, tuple[NDArray[np.int64], Any]]
) -> Iterator[dict[str, NDArray[Any]]]:
    """For each chain the sequences with any activation and its mean activation there, layer by layer.

    ``means`` are, by site, the sequences ``[S]`` and a sparse ``[S, F]``. Yields the columns
    ``sequence`` ``[S]`` and ``activation`` ``[S, layers]`` of each chain, in order; all sites of a chain
    must be there.
    """
    columns = {site: (sequence, matrix.tocsc()) for site, (sequence, matrix) in means.items()}
    for chain in chains:
        parts = [
            (columns[site][0][column.indices], column.data)
            for site, feature in zip(chain.sites, chain.features, strict=True)
            for column in [columns[site][1][:, [feature]].tocsc()]
        ]
        sequence = np.unique(np.concatenate([one for one, _ in parts]))
        activation = np.zeros((len(sequence), chain.length), np.float32)
        for layer, (where, value) in enumerate(parts):
            activation[np.searchsorted(sequence, where), layer] = value
        yield {"sequence": sequence, "activation": activation}
