"""The JSON endpoints. ``raysae/docs/features.md`` says what each takes and gives."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl, unquote

from raysae.errors import UserError
from raysae.serving.catalog import Catalog, NotThereError
from raysae.serving.encoder import (
    MOST_CHARACTERS,
    MOST_SITES,
    Encoder,
    NoModelError,
)

MOST_TOP = 200
"""Features of a site in the answer about a text, at most."""
ENDPOINTS = {
    "GET /api": "this list",
    "GET /api/run": "the run: name, sites, phases that were not run, whether the model is there",
    "GET /api/features/SITE": "the features of a site; ?q=TEXT&sort=-density&offset=0&limit=100&dead=1",
    "GET /api/features/SITE/NUMBER": "all that is known of a feature",
    "POST /api/encode": 'the features active in a text: {"text", "sites", "token", "top"}',
}


@dataclass(frozen=True)
class Answer:
    """An answer's status and its content."""

    status: int
    content: Any


class Refusal(Exception):
    """A request that is refused, with the answer's status."""

    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status = status


@dataclass
class Api:
    """Answers of one run."""

    catalog: Catalog
    encoder: Encoder

    def get(self, path: str, query: str) -> Answer:
        """The answer to a GET. Raises Refusal."""
        match [unquote(part, errors="replace") for part in path.strip("/").split("/")]:
            case ["api"]:
                return Answer(200, ENDPOINTS)
            case ["api", "run"]:
                return Answer(200, {**self.catalog.run(), "model": self.model()})
            case ["api", "features", site]:
                wanted = dict(parse_qsl(query, max_num_fields=20))
                return _asked(lambda: self.catalog.features(site, wanted))
            case ["api", "features", site, number]:
                if not (number.isascii() and number.isdecimal() and len(number) < 10):
                    raise Refusal(404, f"{number[:40]!r} is no feature's number")
                return _asked(lambda: self.catalog.feature(site, int(number)))
        raise Refusal(404, "there is no such endpoint; GET /api lists them")

    def model(self) -> dict[str, Any]:
        """Whether texts can be encoded, and why not."""
        encoder = self.encoder
        return {
            "state": encoder.state, "reason": encoder.reason, "most_characters": MOST_CHARACTERS,
            "most_sites": MOST_SITES,
        }  # fmt: skip

    def post(self, path: str, given: Any) -> Answer:
        """The answer to a POST. Raises Refusal."""
        if path != "/api/encode":
            raise Refusal(404, "there is no such endpoint; GET /api lists them")
        if not isinstance(given, dict):
            raise Refusal(400, 'expected an object such as {"text": "2 + 3 ="}')
        text, sites = _text(given), self._sites(given)
        top, token = _number(given, "top", 10, MOST_TOP), _number(given, "token", None, 10**6)
        answer = _asked(lambda: self._encoded(text, sites, top or 1, token))
        return answer

    def _sites(self, given: Mapping[str, Any]) -> list[str]:
        there = list(self.catalog.sites)
        names = given.get("sites") or there
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise Refusal(400, f"sites: expected a list of names, such as {there[:1]}")
        unknown = [name for name in names if name not in self.catalog.sites]
        if unknown:
            raise Refusal(404, f"no site {unknown[0][:80]!r} with labels; GET /api/run lists them")
        if len(names) > MOST_SITES:
            raise Refusal(413, f"sites: {len(names)} at once; name up to {MOST_SITES}")
        return list(dict.fromkeys(names))

    def _encoded(self, text: str, names: list[str], top: int, token: int | None) -> dict[str, Any]:
        sites = [self.catalog.sites[name] for name in names]
        found = self.encoder.encode(text, sites, top, token)
        keys = {site: name for name, site in self.catalog.sites.items()}
        for one in found["sites"]:
            one["site"] = keys[one["site"]]
            for feature in one["features"]:
                feature["label"] = self.catalog.label(one["site"], feature["feature"])
        return found


def _asked(answer: Any) -> Answer:
    """The answer, or a refusal in place of its error."""
    try:
        return Answer(200, answer())
    except NotThereError as error:
        raise Refusal(404, str(error)) from None
    except NoModelError as error:
        raise Refusal(503, str(error)) from None
    except UserError as error:
        raise Refusal(400, str(error)) from None


def _text(given: Mapping[str, Any]) -> str:
    text = given.get("text")
    if not isinstance(text, str) or not text.strip():
        raise Refusal(400, "text: expected a text that is not empty")
    if len(text) > MOST_CHARACTERS:
        raise Refusal(413, f"text: {len(text):,} characters; expected up to {MOST_CHARACTERS:,}")
    return "".join(
        "\N{REPLACEMENT CHARACTER}" if "\ud800" <= one <= "\udfff" else one for one in text
    )


def _number(given: Mapping[str, Any], name: str, default: int | None, most: int) -> int | None:
    value = given.get(name)
    if value is None:
        return default
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= most:
        raise Refusal(400, f"{name}: expected a number from 0 to {most:,}")
    return value
