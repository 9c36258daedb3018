"""The analysis of the atlas: which phases run, and their options."""

from typing import Any

from raysae.config.section import Section


class AnalyzeConfig(Section):
    """What the features mean: phases of analysis after the atlas."""

    phases: tuple[str, ...] | None = None
    """The phases to run; null takes the quick ones whose needs are met, an empty list none.
    ``python -m raysae.analyze RUN PHASE`` runs others later."""
    options: dict[str, dict[str, Any]] = {}  # noqa: RUF012  (pydantic copies it)
    """Options of phases, such as ``{loss: {sequences: 500}}``; ``python -m raysae.analyze --help`` lists
    them."""
