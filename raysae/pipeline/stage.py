"""What a stage of a run is: what makes its product, which files it is, how it is made."""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import ClassVar

from raysae.console.board import console
from raysae.errors import UserError
from raysae.identity import Made
from raysae.pipeline.attempt import Attempt
from raysae.records.folder import RunFolder
from raysae.storage.files import sha256_of


class Stage(ABC):
    """One stage: what makes its product, which files it is, how it is made."""

    name: ClassVar[str]

    @abstractmethod
    def made(self, attempt: Attempt) -> Made:
        """What makes the product; everything that the stage needs exists when this is called."""

    @abstractmethod
    def products(self, attempt: Attempt) -> list[Path]:
        """The files that the stage writes and that must exist when it is done."""

    def prepare(self, attempt: Attempt) -> None:  # noqa: B027  (most have nothing to prepare)
        """Set aside or remove a product that was made otherwise, before ``work``."""

    @abstractmethod
    def work(self, attempt: Attempt) -> list[str]:
        """Make what is missing of the product; returns what could not be made, a line each."""

    @abstractmethod
    def read(self, attempt: Attempt) -> None:
        """Read the product of an earlier attempt from the run folder into the result."""

    def is_missing(self, attempt: Attempt) -> bool:
        """Whether the product, or a part of it, has to be made.

        A product that was damaged or altered counts as missing, and this is printed.
        """
        run = attempt.run
        if not run.has(self.name, self.made(attempt), *self.products(attempt)):
            return True
        try:
            self.check(attempt)
        except UserError as error:
            console.print(f"{error}; it is made again from what is committed", style="yellow")
            run.begin_again(self.name)
            return True
        return False

    def check(self, attempt: Attempt) -> None:
        """Raise UserError when the product of an earlier attempt was damaged or altered."""
        attempt.run.check_unaltered(self.name)
        self.read(attempt)


class AddedStage(Stage):
    """A stage that runs of earlier versions lack. A run that was finished by one stays as it is until it
    has other trials."""

    def is_missing(self, attempt: Attempt) -> bool:
        """See ``Stage.is_missing``."""
        left_out = not self.is_asked_for(attempt) and self._was_finished_without(attempt.run)
        return not left_out and super().is_missing(attempt)

    def is_asked_for(self, attempt: Attempt) -> bool:
        """Whether the recipe or the command asks for it by more than the defaults."""
        return False

    def _was_finished_without(self, run: RunFolder) -> bool:
        """Whether an earlier version made the page of the trials that are there, without this stage."""
        if self.name in run.status["stages"] or run.state("report") != "done":
            return False
        shown = (run.made("report") or {}).get(run.trials_file.name)
        return run.trials_file.is_file() and shown == sha256_of(run.trials_file)
