"""The proposer as Ray Tune sees it."""

from collections.abc import Callable, Mapping
from typing import Any

from ray.tune.search import Searcher

from raysae.sweep.proposals import Outcome, Proposer

Outcomes = Mapping[int, Outcome]


class OrderedSearcher(Searcher):
    """Hands out trials in order and gathers their outcomes for the proposer.

    A trial whose proposal still lacks an outcome has to wait, so that arrival never shows. ``spent``
    says why no further trial may begin, from the outcomes so far.
    """

    def __init__(
        self, proposer: Proposer, spent: Callable[[Outcomes], str | None] = lambda _: None
    ):
        super().__init__()
        self._proposer, self._spent = proposer, spent
        self.ended_early: str | None = None
        """Why there are fewer trials than were asked for."""
        self._numbers: dict[str, int] = {}
        self._outcomes: dict[int, dict[str, Any] | None] = {}
        self._next = 0

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """The next trial's number and parameters; None while it has to wait, FINISHED at the end."""
        number = self._next
        if number >= self._proposer.trials:
            return Searcher.FINISHED
        self.ended_early = self.ended_early or self._spent(self._outcomes)
        if self.ended_early:
            return Searcher.FINISHED
        if any(n not in self._outcomes for n in range(number - self._proposer.lag + 1)):
            return None
        parameters = self._proposer.propose(number, self._outcomes)
        if parameters is None:  # the space holds no further config
            self._proposer.trials = number
            self.ended_early = f"sweep.space holds no further config after {number}"
            return Searcher.FINISHED
        self._next += 1
        self._numbers[trial_id] = number
        return {"trial": number, "parameters": parameters}

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        failed = error or not result or result.get("failed")
        self._outcomes[self._numbers[trial_id]] = None if failed else result

    def save(self, checkpoint_path: str) -> None:
        """Nothing to save: a resumed sweep replays the committed trials in order."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing to restore; see ``save``."""
