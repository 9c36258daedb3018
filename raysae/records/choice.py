"""The choice of a run: that of its search, or the config that its recipe gives."""

from typing import Any

from raysae.records.damage import read_selection
from raysae.records.folder import RunFolder

GIVEN = "given"
"""The rule of a run without a search."""


def given_config() -> dict[str, Any]:
    """The choice of a run without a search: no trial, but the config that the recipe gives."""
    choice = {"trial": None, "reason": "the config is given; there was no search"}
    return {"rule": GIVEN, "choice": choice, "choices": {}}


def read_choice(run: RunFolder) -> dict[str, Any]:
    """The content of the run's ``selection.json``, or ``given_config()`` for a run without a search.

    Raises UserError when the file is missing or damaged.
    """
    return read_selection(run.selection_file) if run.recipe.sweep.enabled else given_config()
