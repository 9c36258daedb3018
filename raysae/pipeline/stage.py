"""What a stage of a run is: what makes its product, which files it is, how it is made."""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import ClassVar

from raysae.console.board import console
from raysae.errors import UserError
from raysae.identity import Made
from raysae.pipeline.attempt import Attempt


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
