"""The proposer as Ray Tune sees it."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ray.tune.search import Searcher

from raysae.sweep.search.proposals import Outcome, Proposer
from raysae.sweep.trials.gang import GANG

Outcomes = Mapping[int, Outcome]


class OrderedSearcher(Searcher):
    """Hands out trials in order, ``gang`` at a time, and gathers their outcomes for the proposer.

    A trial whose proposal still lacks an outcome has to wait, so that arrival never shows. ``spent``
    says why no further trial may begin, from the outcomes so far; ``tell`` is told each outcome.
    """

    def __init__(
        self,
        proposer: Proposer,
        spent: Callable[[Outcomes], str | None] = lambda _: None,
        gang: int = 1,
        tell: Callable[[int, Outcome], object] = lambda number, outcome: None,
    ):
        super().__init__()
        self._proposer, self._spent, self._gang, self._tell = proposer, spent, gang, tell
        self.ended_early: str | None = None
        """Why there are fewer trials than were asked for."""
        self._numbers: dict[str, list[int]] = {}
        self._reports: dict[str, list[dict[str, Any]]] = {}
        self._outcomes: dict[int, dict[str, Any] | None] = {}
        self._next = 0

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """The next trials' numbers and parameters; None while they have to wait, FINISHED at the end."""
        if self._next >= self._proposer.trials:
            return Searcher.FINISHED
        self.ended_early = self.ended_early or self._spent(self._outcomes)
        if self.ended_early:
            return Searcher.FINISHED
        last = min(self._next + self._gang, self._proposer.trials) - 1
        if any(n not in self._outcomes for n in range(last - self._proposer.lag + 1)):
            return None
        gang = list(self._proposed(range(self._next, last + 1)))
        if not gang:
            return Searcher.FINISHED
        self._next += len(gang)
        self._numbers[trial_id] = [asked["trial"] for asked in gang]
        return {GANG: gang}

    def _proposed(self, numbers: range) -> Iterator[dict[str, Any]]:
        for number in numbers:
            parameters = self._proposer.propose(number, self._outcomes)
            if parameters is None:  # the space holds no further config
                self._proposer.trials = number
                self.ended_early = f"sweep.space holds no further config after {number}"
                return
            yield {"trial": number, "parameters": parameters}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        self._reports[trial_id] = result[GANG]

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        reports = (result or {}).get(GANG) or self._reports.pop(trial_id, [])
        told = {report["trial"]: report for report in reports}
        for number in self._numbers[trial_id]:
            report = told.get(number, {})
            lost = not report or report.get("failed") or (error and not report.get("done"))
            self._outcomes[number] = None if lost else report
            self._tell(number, self._outcomes[number])

    def save(self, checkpoint_path: str) -> None:
        """Nothing to save: a resumed sweep replays the committed trials in order."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing to restore; see ``save``."""
