"""A site's features as the pages and the server give them: the list of all, and the details of some."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from raysae.browser.details import Words, effect_detail, feature_detail, rounded, shown
from raysae.browser.tables import ABLATION, STABILITY, TRACKING, Results, site_key
from raysae.browser.tracks import Tracks
from raysae.sites import Site

Row = Mapping[str, Any]
LISTED_TOKENS = 4
"""Tokens of a feature that the list shows."""
NUMBERS = ("density", "max_activation", "mean_activation", "coherence", "attribute_r")
EFFECTS = ("accuracy", "ce", "kl", "away")


class SiteData:
    """The features of one site."""

    def __init__(self, results: Results, tracks: Tracks, site: Site):
        self.results, self.tracks, self.site = results, tracks, site

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        """A row a feature, in the order of their numbers."""
        rows = self.results.features.of(self.site.folder).to_pylist()
        return sorted(rows, key=lambda row: row["feature"])

    @cached_property
    def effects(self) -> dict[int, Row]:
        """The ablation's rows by feature; a chosen one before a control."""
        rows = self.results.phases[ABLATION].rows(
            "features", layer=self.site.layer, position=str(self.site.position),
            hookpoint=self.site.hookpoint,
        )  # fmt: skip
        rows.sort(key=lambda row: row["kind"] == "chosen")
        return {row["feature"]: row for row in rows}

    @cached_property
    def measure(self) -> str | None:
        """The effect that the list shows: the one that features are ranked by; None without effects."""
        wanted = self.results.phases[ABLATION].setting("rank")
        for name in (wanted, *EFFECTS):
            if any(row.get(str(name)) is not None for row in self.effects.values()):
                return str(name)
        return None

    @cached_property
    def matched(self) -> dict[str, dict[int, float | None]]:
        """By what is compared (``seeds``, ``layers``): the least cosine of each compared feature."""
        rows = self.results.phases[STABILITY].rows("features", site=self.site.folder)
        found: dict[str, dict[int, float | None]] = {}
        for row in rows:
            found.setdefault(row["kind"], {})[row["feature"]] = row["least_cosine"]
        return found

    def facts(self) -> dict[str, Any]:
        """What the site is, and a summary of its features."""
        live = sorted(row["density"] for row in self.rows if row["live"])
        coherent = [row["coherence"] for row in self.rows if row["coherence"] is not None]
        return {
            "site": site_key(self.site), "title": str(self.site), "layer": self.site.layer,
            "position": str(self.site.position),
            "hookpoint": self.rows[0]["hookpoint"] if self.rows else self.site.hookpoint,
            "features": len(self.rows), "live": len(live),
            "labelled": sum(row["labelled"] for row in self.rows),
            "density": rounded(live[len(live) // 2]) if live else None,
            "coherence": rounded(sum(coherent) / len(coherent)) if coherent else None,
            "rows": self.rows[0]["rows"] if self.rows else 0,
        }  # fmt: skip

    def table(self) -> dict[str, list[Any]]:
        """The list of all features, a column each; the feature's number is its place."""
        rows, numbers = self.rows, range(len(self.rows))
        effects = [self.effects.get(number) for number in numbers]
        return {
            "live": [int(row["live"]) for row in rows],
            "contexts": [int(row["labelled"]) for row in rows],
            **{name: [rounded(row[name]) for row in rows] for name in NUMBERS},
            "attribute": [_text(row["attribute"]) for row in rows],
            "tokens": [_few(row["tokens"]) for row in rows],
            "promotes": [_few(row["promotes"]) for row in rows],
            "description": [_text(row.get("description")) for row in rows],
            "effect": [self._effect(row, "") for row in effects],
            "effect_low": [self._effect(row, "_low") for row in effects],
            "effect_high": [self._effect(row, "_high") for row in effects],
            "stability": [rounded(self._stability(row)) for row in rows],
            "next_layer": [rounded(self.matched.get("layers", {}).get(n)) for n in numbers],
            "track": [self.tracks.length(self.site, number) for number in numbers],
        }  # fmt: skip

    def _effect(self, row: Row | None, end: str) -> Any:
        return None if row is None or self.measure is None else rounded(row[f"{self.measure}{end}"])

    def _stability(self, row: Row) -> float | None:
        """The cosine with another seed's feature: matched one to one, or else the nearest."""
        return self.matched.get("seeds", {}).get(row["feature"], row["seed_agreement"])

    def details(self, numbers: Sequence[int], words: Words) -> list[dict[str, Any]]:
        """The details of some features; their texts are numbers of ``words``."""
        return [
            {
                **feature_detail(
                    self.rows[number], self.contexts_of(number),
                    self._attributes.get(number, []), words,
                ),
                "effect": effect_detail(self.effects.get(number)),
                "track": self._track(number),
                "least_cosine": [
                    [kind, rounded(of[number], 3)]
                    for kind, of in self.matched.items()
                    if number in of
                ],
            }
            for number in numbers
        ]  # fmt: skip

    def contexts_of(self, number: int) -> list[Row]:
        """The contexts of a feature: the strongest, then those of each band, the weakest first."""
        return self._contexts.get(number, [])

    def _track(self, number: int) -> dict[str, Any] | None:
        if not self.results.phases[TRACKING].there:
            return None
        found = self.tracks.of(self.site, number)
        return None if found is None else _rounded(found)

    @cached_property
    def _contexts(self) -> dict[int, list[Row]]:
        return _by_feature(self.results.contexts.of(self.site.folder).to_pylist())

    @cached_property
    def _attributes(self) -> dict[int, list[Row]]:
        return _by_feature(self.results.attributes.of(self.site.folder).to_pylist())


def _by_feature(rows: Sequence[Row]) -> dict[int, list[Row]]:
    found: dict[int, list[Row]] = {}
    for row in rows:
        found.setdefault(row["feature"], []).append(row)
    return found


def _text(text: str | None) -> str | None:
    return None if text is None else shown(text)


def _few(tokens: Sequence[str] | None) -> list[str] | None:
    return None if tokens is None else [shown(token) for token in tokens[:LISTED_TOKENS]]


def _rounded(value: Any) -> Any:
    """All numbers in lists and dictionaries with three significant digits."""
    if isinstance(value, Mapping):
        return {key: _rounded(one) for key, one in value.items()}
    return [_rounded(one) for one in value] if isinstance(value, list) else rounded(value, 3)
