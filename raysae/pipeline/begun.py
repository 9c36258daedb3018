"""Errors in the middle of a run: what was made stays, and a command continues it."""

from collections.abc import Iterator
from contextlib import contextmanager

from raysae.config import Recipe
from raysae.console.shell import raysae_command
from raysae.errors import UnfinishedError, UserError
from raysae.records.run_files import RECIPE_FILE, RunFiles
from raysae.storage.trouble import in_words, number_of


class Begun:
    """Whether an attempt at a run has begun to make something."""

    def __init__(self) -> None:
        self.marked = False

    def mark(self) -> None:
        """From now on an error does not mean that nothing was done."""
        self.marked = True


@contextmanager
def told_if_begun(recipe: Recipe) -> Iterator[Begun]:
    """Once the block has marked the yielded object, its UserError or OSError becomes UnfinishedError.

    The message says then where the finished work is and which command continues it. Before the mark, and
    for an OSError without a number, the error is raised as it is.
    """
    begun = Begun()
    try:
        yield begun
    except UnfinishedError:
        raise
    except (UserError, OSError) as error:
        if not begun.marked or (isinstance(error, OSError) and number_of(error) is None):
            raise
        reason = in_words(error) if isinstance(error, OSError) else str(error)
        raise UnfinishedError(f"{reason}{_continues(recipe)}") from error


def continuing(recipe: Recipe) -> str:
    """The command that continues a recipe's run."""
    verb = ("sweep", "--resume") if recipe.sweep.enabled else ("atlas", "--run")
    return raysae_command(*verb, recipe.run_place)


def _continues(recipe: Recipe) -> str:
    folder = RunFiles.of(recipe).path
    if not (folder / RECIPE_FILE).is_file():
        return ""  # the folder is gone, and the reason says so
    again = continuing(recipe)
    return f"\nwhat is finished stays in {folder}; then {again} continues it"
