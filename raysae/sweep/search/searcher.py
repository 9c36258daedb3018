"""The proposer as a searcher of Ray Tune."""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ray.tune.search import Searcher

from raysae.sweep.search.proposals import Outcome, Proposer
from raysae.sweep.trials.gang import GANG

Outcomes = Mapping[int, Outcome]


class OrderedSearcher(Searcher):
    """Gives Tune the trials in order, ``gang`` at a time, and collects outcomes for the proposer.

    A trial waits until all outcomes that its proposal uses are there, so the order of arrival has no
    effect. ``spent`` takes the outcomes so far and returns why no further trial may begin, or None.
    ``tell`` is called with the number and outcome of each trial that has ended. With ``wave``, gangs
    start so many at a time: those of the next wave wait until all of this one have ended. ``at_work`` is
    called with the number of gangs that are at work, when it changes.
    """

    def __init__(
        self,
        proposer: Proposer,
        spent: Callable[[Outcomes], str | None] = lambda _: None,
        gang: int = 1,
        tell: Callable[[int, Outcome], object] = lambda number, outcome: None,
        wave: int | None = None,
        at_work: Callable[[int], object] = lambda gangs: None,
    ):
        super().__init__()
        self._wave, self._at_work, self._working = wave, at_work, 0
        self._proposer, self._spent, self._gang, self._tell = proposer, spent, gang, tell
        self.ended_early: str | None = None
        """Why there are fewer trials than the recipe asks for; None when there are not."""
        self._numbers: dict[str, list[int]] = {}
        self._reports: dict[str, list[dict[str, Any]]] = {}
        self._outcomes: dict[int, dict[str, Any] | None] = {}
        self._next = 0

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """The next gang's numbers and parameters; None while it must wait, FINISHED after the last."""
        if self._next >= self._proposer.trials:
            return Searcher.FINISHED
        self.ended_early = self.ended_early or self._spent(self._outcomes)
        if self.ended_early:
            return Searcher.FINISHED
        last = min(self._next + self._gang, self._proposer.trials) - 1
        lacking = any(n not in self._outcomes for n in range(last - self._proposer.lag + 1))
        if lacking or self._must_wait():
            return None
        gang = list(self._proposed(range(self._next, last + 1)))
        if not gang:
            return Searcher.FINISHED
        self._note_wave()
        self._next += len(gang)
        self._numbers[trial_id] = [asked["trial"] for asked in gang]
        return {GANG: gang}

    def _must_wait(self) -> bool:
        """Whether the next gang is the first of a wave, and the wave before has not ended."""
        if self._wave is None:
            return False
        begins = self._next // self._gang % self._wave == 0
        return begins and any(number not in self._outcomes for number in range(self._next))

    def _note_wave(self) -> None:
        """Tell how many gangs a wave has, before its first begins."""
        if self._wave is not None and self._next // self._gang % self._wave == 0:
            left = math.ceil((self._proposer.trials - self._next) / self._gang)
            self._working = min(self._wave, left)
            self._at_work(self._working)

    def _proposed(self, numbers: range) -> Iterator[dict[str, Any]]:
        for number in numbers:
            parameters = self._proposer.propose(number, self._outcomes)
            if parameters is None:  # the space holds no further config
                self._proposer.trials = number
                self.ended_early = f"sweep.space holds no further config after {number}"
                return
            yield {"trial": number, "parameters": parameters}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Store the last reports of a gang, in case it ends without a result."""
        self._reports[trial_id] = result[GANG]

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Note the outcome of each trial of a gang; None for those that failed."""
        self._working -= 1
        self._at_work(self._working)
        reports = (result or {}).get(GANG) or self._reports.pop(trial_id, [])
        by_number = {report["trial"]: report for report in reports}
        for number in self._numbers[trial_id]:
            report = by_number.get(number, {})
            lost = not report or report.get("failed") or (error and not report.get("done"))
            self._outcomes[number] = None if lost else report
            self._tell(number, self._outcomes[number])

    def save(self, checkpoint_path: str) -> None:
        """Nothing to save: a resumed sweep replays the committed trials in order."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing to restore; see ``save``."""
