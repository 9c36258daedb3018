"""Where patterns match in texts: regular expressions, with a limit of time, and the roles of a chat."""

import re
from collections.abc import Iterator, Sequence

from raysae.errors import UserError
from raysae.sites import PATTERNS, ROLE
from raysae.transformer.chat import Span
from raysae.transformer.guarded import Guard, PastLimitError

QUICK = tuple(PATTERNS.values())
"""Expressions that read every text once or twice."""
Places = list[tuple[int, int]]
"""First character of each match, and the one after its last."""
Text = tuple[str, int, tuple[Span, ...]]
"""A text, the row of the data set that it is, and where a chat's messages lie in it."""


class Pattern:
    """A regular expression, or the messages of a role."""

    def __init__(self, name: str, expression: str):
        self.name, self.text = name, expression
        self.role = expression.removeprefix(ROLE) if expression.startswith(ROLE) else None
        self.expression = re.compile(expression)

    @property
    def slow(self) -> bool:
        """Whether there may be texts on which the expression takes longer than any one can wait."""
        return self.role is None and self.text not in QUICK

    def places(self, text: str, spans: tuple[Span, ...] = ()) -> Places:
        """The places that it matches."""
        if self.role is not None:
            return [(span.start, span.end) for span in spans if span.role == self.role]
        group = 1 if self.expression.groups else 0
        return [match.span(group) for match in self.expression.finditer(text)]


class PatternFinder:
    """The places of several patterns in texts; ``prefix`` stands before settings in messages."""

    def __init__(self, patterns: Sequence[Pattern], prefix: str = ""):
        self.patterns, self.prefix = patterns, prefix
        self._guard = Guard(lambda item: patterns[item[0]].places(item[1]))

    def places(self, texts: Sequence[Text]) -> Iterator[list[Places]]:
        """Yield, for each text, the places of each pattern.

        Raises UserError that names the pattern and the row when a text takes too long.
        """
        numbers = [number for number, pattern in enumerate(self.patterns) if pattern.slow]
        items = [((number, text), len(text)) for text, _, _ in texts for number in numbers]
        results = self._guard.results(items)
        for text, row, spans in texts:
            found = []
            for pattern in self.patterns:
                if not pattern.slow:
                    found.append(pattern.places(text, spans))
                    continue
                try:
                    found.append(next(results))
                except PastLimitError as error:
                    raise UserError(
                        f"{self.prefix}patterns: {pattern.name} ({pattern.text!r}) {error} on row {row} "
                        f"of the data set ({len(text):,} characters); write it without repeats inside "
                        "repeats, such as (a+)+"
                    ) from None
            yield found
