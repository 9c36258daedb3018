"""A copy of the search in the run folder, for ``optuna-dashboard``; nothing of ours reads it."""

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
"""Is told a trial's number and what it came to."""


@contextmanager
def study_copied(
    proposer: Proposer, path: Path, name: str, send: Callable[[Path], None] = lambda path: None
) -> Iterator[Ended]:
    """What is told inside of trials that have ended is in the SQLite file ``path`` afterwards, where
    Optuna searches; lists and grids have no study."""
    if not isinstance(proposer, Searched):
        yield lambda number, outcome: None
        return
    copy = StudyCopy(proposer, path, name, send)
    try:
        yield copy.add
    finally:
        copy.close()


class StudyCopy:
    """A study's trials in a file that grows as they end, written by a thread of its own.

    They are added in the order of their numbers, since Optuna counts them as they come; each go at a run
    writes the file anew. What goes wrong with it is said once and never stops a sweep.
    """

    def __init__(
        self,
        proposer: Searched,
        path: Path,
        name: str,
        send: Callable[[Path], None] = lambda path: None,
    ):
        self.proposer, self.path, self.name, self.send = proposer, path, name, send
        self._thread = ThreadPoolExecutor(1, "raysae-study")
        self._copy: optuna.Study | None = None
        self._waiting: dict[int, optuna.trial.FrozenTrial] = {}
        self._next = 0
        self._broken = False

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles its searcher to restore an experiment, which we never do

    def add(self, number: int, outcome: Outcome) -> None:
        """Trial ``number`` has ended."""
        try:
            self._waiting[number] = self.proposer.ended(number, outcome)
        except Exception as error:
            self._give_up(error)
        while self._next in self._waiting:
            self._thread.submit(self._write, self._waiting.pop(self._next))
            self._next += 1

    def close(self) -> None:
        """Wait until all that have ended are written."""
        for number in sorted(self._waiting):
            self._thread.submit(self._write, self._waiting[number])
        self._thread.shutdown()
        if self._copy is not None and not self._broken:
            self.send(self.path)

    def _write(self, trial: optuna.trial.FrozenTrial) -> None:
        if self._broken:
            return
        try:
            self._copy = self._copy or self._begun()
            self._copy.add_trial(trial)
        except Exception as error:  # a full disk, a file system without locks
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        if not self._broken:
            console.print(f"{self.path}: not written ({error})", style="yellow")
        self._broken = True

    def _begun(self) -> optuna.Study:
        for end in ("", "-journal", "-wal", "-shm"):
            self.path.with_name(self.path.name + end).unlink(missing_ok=True)
        for library in ("alembic", "sqlalchemy"):
            logging.getLogger(library).setLevel(logging.ERROR)
        return optuna.create_study(
            storage=f"sqlite:///{self.path}",
            study_name=self.name,
            directions=self.proposer.study.directions,
        )
