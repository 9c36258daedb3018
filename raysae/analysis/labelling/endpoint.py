"""An OpenAI-compatible endpoint, asked with the standard library alone."""

import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from raysae.errors import UserError
from raysae.printable import printable, shortened
from raysae.redaction import first_line, redacted

KEY_VARIABLE = "RAYSAE_DESCRIBER_KEY"
"""The environment variable that holds the endpoint's key; it is never in a recipe or a record."""
LONGEST_ANSWER = 2**20
"""Bytes of an answer that are read."""
PASSING = (408, 409, 425, 429, 500, 502, 503, 504)
"""Status codes after which a request is sent again."""


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Follows no redirect: the key is for the named host alone."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


@dataclass(frozen=True)
class Endpoint:
    """Where descriptions come from."""

    url: str
    model: str
    timeout: float
    retries: int
    pause: float = 1.0
    """Seconds before a request is sent again; twice as long each further time."""

    def ask(self, question: str, tokens: int, alive: Callable[[], None]) -> str:
        """The model's answer to a question, of ``tokens`` tokens at most.

        Raises UserError when there is none after all retries.
        """
        body = json.dumps(
            {
                "model": self.model, "temperature": 0, "seed": 0, "max_tokens": tokens,
                "messages": [{"role": "user", "content": question}],
            }
        ).encode()  # fmt: skip
        for attempt in range(self.retries + 1):
            alive()
            try:
                return _content(self._sent(body))
            except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
                status = error.code if isinstance(error, urllib.error.HTTPError) else None
                last = attempt == self.retries or (status is not None and status not in PASSING)
                if last:
                    raise UserError(self._failed(error, attempt + 1)) from None
            time.sleep(self.pause * 2**attempt)
        raise AssertionError("the loop returns or raises")

    def _sent(self, body: bytes) -> Any:
        key = os.environ.get(KEY_VARIABLE)
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if key:
            headers["Authorization"] = f"Bearer {key}"
        request = urllib.request.Request(
            f"{self.url.rstrip('/')}/chat/completions", body, headers, method="POST"
        )
        opener = urllib.request.build_opener(_NoRedirect)
        with opener.open(request, timeout=self.timeout) as answer:
            return json.loads(answer.read(LONGEST_ANSWER))

    def _failed(self, error: BaseException, attempts: int) -> str:
        reason = shortened(printable(first_line(error)), 200)
        times = "" if attempts == 1 else f" {attempts} times"
        return redacted(
            f"the describer at {self.url} failed{times} ({type(error).__name__}: {reason})"
        )


def _content(answer: Any) -> str:
    """The text of an answer. Raises KeyError and the like when it is none."""
    content = answer["choices"][0]["message"]["content"]
    if not isinstance(content, str) or not content.strip():
        raise ValueError("the answer holds no text")
    return content


def check_endpoint(url: str, model: str | None) -> None:
    """Raise UserError unless the settings can name an endpoint and its model."""
    try:
        parts = urlsplit(url)
        sound = parts.scheme in ("http", "https") and bool(parts.hostname)
    except ValueError:
        sound = False
    if not sound:
        raise UserError(
            f"labels.describer_url: {printable(redacted(url))!r} is no address of an "
            "endpoint; expected one such as http://localhost:8000/v1"
        )
    if not model:
        raise UserError(
            "labels.describer_model: the endpoint's model is not named; give its name, such as "
            "labels.describer_model=gpt-4o-mini"
        )
