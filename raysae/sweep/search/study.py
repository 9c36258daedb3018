"""A copy of the search in the run folder, for ``optuna-dashboard``; raysae does not read it."""

import logging
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna

from raysae.console.board import console
from raysae.sweep.search.proposals import Outcome, Proposer, Searched

Ended = Callable[[int, Outcome], None]
"""Is called with the number and the outcome of each trial that has ended."""


@contextmanager
def study_copied(
    proposer: Proposer,
    path: Path,
    name: str,
    send: Callable[[Path], None] = lambda path: None,
    check: Callable[[], None] = lambda: None,
) -> Iterator[Ended]:
    """Copy the trials that end within the block to the SQLite file ``path``.

    Yields the function to call with each trial's number and outcome; ``send`` gets the finished file.
    ``check`` is called before each write, and raises when there is no place for it any more.
    Lists and grids have no study, so nothing is written for them.
    """
    if not isinstance(proposer, Searched):
        yield lambda number, outcome: None
        return
    copy = StudyCopy(proposer, path, name, send, check)
    try:
        yield copy.add
    finally:
        copy.close()


class StudyCopy:
    """Writes a study's trials to a file as they end, in a thread of its own.

    Trials are added in the order of their numbers, because Optuna numbers them in the order of arrival.
    Each attempt at a run writes the file anew. An error is printed once and never stops a sweep.
    """

    def __init__(
        self,
        proposer: Searched,
        path: Path,
        name: str,
        send: Callable[[Path], None] = lambda path: None,
        check: Callable[[], None] = lambda: None,
    ):
        self.proposer, self.path, self.name = proposer, path, name
        self.send, self.check = send, check
        self._thread = ThreadPoolExecutor(1, "raysae-study")
        self._copy: optuna.Study | None = None
        self._waiting: dict[int, optuna.trial.FrozenTrial] = {}
        self._next = 0
        self._broken = False

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles its searcher to restore an experiment; raysae does not restore

    def add(self, number: int, outcome: Outcome) -> None:
        """Add trial ``number``, which has ended with ``outcome``."""
        try:
            self._waiting[number] = self.proposer.ended(number, outcome)
        except Exception as error:
            self._give_up(error)
        while self._next in self._waiting:
            self._thread.submit(self._write, self._waiting.pop(self._next))
            self._next += 1

    def close(self) -> None:
        """Write the trials that still wait for one before them, and send the file."""
        for number in sorted(self._waiting):
            self._thread.submit(self._write, self._waiting[number])
        self._thread.shutdown()
        if self._copy is not None and not self._broken:
            self.send(self.path)

    def _write(self, trial: optuna.trial.FrozenTrial) -> None:
        if self._broken:
            return
        try:
            self.check()
            if self._copy is not None and not self.path.exists():  # SQLite would make an empty one
                raise FileNotFoundError("it was deleted while the run was in work")
            self._copy = self._copy or self._new_study()
            self._copy.add_trial(trial)
        except Exception as error:  # a full disk, a file system without locks
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        if not self._broken:
            console.print(f"{self.path}: not written ({error})", style="yellow")
        self._broken = True

    def _new_study(self) -> optuna.Study:
        for end in ("", "-journal", "-wal", "-shm"):
            self.path.with_name(self.path.name + end).unlink(missing_ok=True)
        for library in ("alembic", "sqlalchemy"):
            logging.getLogger(library).setLevel(logging.ERROR)
        return optuna.create_study(
            storage=f"sqlite:///{self.path}",
            study_name=self.name,
            directions=self.proposer.study.directions,
        )
