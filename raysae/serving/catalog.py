"""What the JSON endpoints tell of a run's features, from the results of its analysis."""

import threading
from collections import OrderedDict
from collections.abc import Mapping
from functools import cached_property
from typing import Any

from raysae.browser.details import Words
from raysae.browser.pages import Heading, run_facts
from raysae.browser.site_data import SiteData
from raysae.browser.tables import TRACKING, Results, site_key
from raysae.browser.tracks import Tracks
from raysae.errors import UserError
from raysae.sites import Site

KEPT_SITES = 16
"""Sites whose tables are kept in memory."""
MOST_LISTED = 1000
"""Features of one answer, at most."""
TEXTS = ("description", "attribute")
LISTS = ("tokens", "promotes")


class NotThereError(UserError):
    """There is no such site or feature."""


class Catalog:
    """The features of a run; safe for several threads."""

    def __init__(self, results: Results, heading: Heading):
        self.results, self.heading = results, heading
        self._tracks = Tracks(results.phases[TRACKING])
        self._lock = threading.Lock()
        self._open: OrderedDict[str, tuple[SiteData, dict[str, list[Any]]]] = OrderedDict()

    @cached_property
    def sites(self) -> dict[str, Site]:
        """The sites with labels, by their names in addresses; none without labels."""
        if not self.results.labels.there:
            return {}
        return {site_key(site): site for site in self.results.sites}

    def run(self) -> dict[str, Any]:
        """What is known of the run."""
        return {**run_facts(self.results, self.heading), "sites": list(self.sites)}

    def _site(self, key: str) -> tuple[SiteData, dict[str, list[Any]]]:
        """A site's features and their list. Raises NotThereError when there is no such site."""
        if key not in self.sites:
            raise NotThereError(f"no site {key!r} with labels; GET /api/run lists the sites")
        with self._lock:
            if key not in self._open:
                data = SiteData(self.results, self._tracks, self.sites[key])
                self._open[key] = data, data.table()
            self._open.move_to_end(key)
            while len(self._open) > KEPT_SITES:
                self._open.popitem(last=False)
            return self._open[key]

    def features(self, key: str, query: Mapping[str, str]) -> dict[str, Any]:
        """The features of a site that contain the text ``q``, sorted by a column ``sort`` (``-`` for the
        largest first), ``limit`` of them from ``offset`` on; ``dead=1`` for dead ones, too.

        Raises NotThereError when there is no such site, UserError when the query cannot be used.
        """
        data, table = self._site(key)
        numbers = [
            number
            for number in range(len(table["live"]))
            if (table["live"][number] or query.get("dead") == "1")
            and query.get("q", "").lower() in _text(table, number)
        ]
        offset, limit = _count(query, "offset", 0), _count(query, "limit", 100)
        listed = _sorted(table, numbers, query.get("sort", "-density"))
        rows = [
            {"feature": number, **{name: column[number] for name, column in table.items()}}
            for number in listed[offset : offset + min(limit, MOST_LISTED)]
        ]
        return {"site": key, "measure": data.measure, "found": len(numbers), "features": rows}

    def feature(self, key: str, number: int) -> dict[str, Any]:
        """All that is known of a feature; its texts are numbers of ``words``.

        Raises NotThereError when there is no such feature.
        """
        data, _ = self._site(key)
        if not 0 <= number < len(data.rows):
            raise NotThereError(
                f"{key} has no feature {number}; they are 0 to {len(data.rows) - 1}"
            )
        words = Words()
        with self._lock:
            (detail,) = data.details([number], words)
        return {"site": key, **detail, "words": words.texts}

    def label(self, key: str, number: int) -> str:
        """A feature's description, or its commonest and its promoted tokens; empty without labels."""
        if key not in self.sites:
            return ""
        _, table = self._site(key)
        if not 0 <= number < len(table["tokens"]):
            return ""
        tokens, promotes = (
            " · ".join(map(_visible, (table[name][number] or [])[:4])) for name in LISTS
        )
        return table["description"][number] or (f"{tokens} → {promotes}" if promotes else tokens)


def _text(table: Mapping[str, list[Any]], number: int) -> str:
    found = [table[name][number] or "" for name in TEXTS]
    found += [text for name in LISTS for text in table[name][number] or []]
    return "\n".join(found).lower()


def _visible(token: str) -> str:
    """A token without the space before it; of one that is nothing but space a mark."""
    return token.strip() or token.replace("\n", "↵").replace(" ", "␣")


def _sorted(table: Mapping[str, list[Any]], numbers: list[int], sort: str) -> list[int]:
    name = sort.removeprefix("-")
    if name == "feature":
        return numbers[::-1] if sort.startswith("-") else numbers
    if name not in table or name in (*TEXTS, *LISTS):
        known = ", ".join(sorted({"feature", *table} - {*TEXTS, *LISTS}))
        raise UserError(f"sort: {name!r} is none of {known}")
    column, sign = table[name], -1 if sort.startswith("-") else 1
    return sorted(numbers, key=lambda one: (column[one] is None, sign * (column[one] or 0), one))


def _count(query: Mapping[str, str], name: str, default: int) -> int:
    given = query.get(name, str(default))
    if not (given.isascii() and given.isdecimal() and len(given) < 10):
        raise UserError(f"{name}: {given[:40]!r} is no count, such as 100")
    return int(given)
