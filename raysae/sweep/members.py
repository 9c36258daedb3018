"""The trainings that make up one trial: its config at each of the sweep's sites, with each of its seeds.

A trial's figures are means over them. Between evaluations they are kept on disk every so often, so that
a trial that is cut off goes on from there, to the same bits.
"""

import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from raysae.files import remove_folder
from raysae.sae.dictionary import best_match
from raysae.sites import Site
from raysae.training import NonFiniteLossError, Trainer, has_training, load_training, save_training

Record = dict[str, Any]
WORST = "explained_variance_worst"
STABILITY = "stability"


class Members:
    """The trainings of a trial, by site and seed, which go through their evaluations together.

    ``kept`` is the folder where they are kept every ``seconds``; ``alive`` is called after every step.
    """

    def __init__(
        self,
        trainers: Mapping[tuple[Site, int], Trainer],
        kept: Path,
        seconds: float,
        alive: Callable[[], None] = lambda: None,
    ):
        self.trainers, self.kept, self.seconds, self.alive = dict(trainers), kept, seconds, alive
        self.histories: dict[tuple[Site, int], list[Record]] = {key: [] for key in trainers}
        self._saved = time.monotonic()
        for key, trainer in self.trainers.items():
            if has_training(self._folder(key)):
                self.histories[key] = load_training(trainer, self._folder(key))

    @property
    def first(self) -> Trainer:
        """The first site's, with the first seed: whose SAE stands for the trial."""
        return next(iter(self.trainers.values()))

    @property
    def history(self) -> list[Record]:
        """The trial's record at each evaluation that all have passed."""
        rounds = zip(*self.histories.values(), strict=False)
        return [self._record(records) for records in rounds]

    @property
    def cost(self) -> Record:
        """What all of them took together."""
        trainers = self.trainers.values()
        seconds = sum(t.seconds + t.feed.waited for t in trainers)
        tokens = sum(t.tokens for t in trainers)
        return {
            "tokens_trained": tokens,
            "tokens_per_second": tokens / max(seconds, 1e-9),
            "wait_seconds": sum(t.feed.waited for t in trainers),
        }

    @property
    def share(self) -> float:
        """How much of the training is done."""
        return self.first.step / self.first.steps

    def rounds(self) -> Iterator[Record]:
        """Train to the end, yielding the trial's record at each evaluation.

        Raises NonFiniteLossError when one of the trainings does, which then names it.
        """
        iterators = {key: self._rounds(key) for key in self.trainers}
        passed = min(len(history) for history in self.histories.values())
        while any(t.step < t.steps for t in self.trainers.values()):
            passed += 1
            for key, rounds in iterators.items():
                if len(self.histories[key]) < passed:
                    next(rounds, None)
            yield self._record([history[passed - 1] for history in self.histories.values()])

    def final_metrics(self) -> Record:
        """The trial's figures at its end: means, the worst site, the agreement of seeds."""
        metrics = self._record([trainer.final_metrics() for trainer in self.trainers.values()])
        agreement = self._stability()
        return metrics if agreement is None else {**metrics, STABILITY: agreement}

    def keep(self) -> None:
        """Write where every training stands."""
        begun = {key: trainer for key, trainer in self.trainers.items() if trainer.step}
        for key, trainer in begun.items():
            save_training(trainer, self._folder(key), self.histories[key])
        self._saved = time.monotonic()

    def forget(self) -> None:
        """Remove what was kept."""
        remove_folder(self.kept)

    def _rounds(self, key: tuple[Site, int]) -> Iterator[None]:
        trainer, (site, seed) = self.trainers[key], key
        try:
            for record in trainer.rounds(on_step=lambda _: self._after_step(trainer)):
                self.histories[key].append(record)
                yield
        except NonFiniteLossError as error:
            if len(self.trainers) == 1:
                raise
            raise NonFiniteLossError(f"seed {seed} at {site}: {error}") from None

    def _after_step(self, trainer: Trainer) -> None:
        self.alive()
        due = time.monotonic() - self._saved >= self.seconds
        # at an evaluation the record is still on its way into the history
        if due and not trainer.at_evaluation():
            self.keep()

    def _folder(self, key: tuple[Site, int]) -> Path:
        site, seed = key
        return self.kept / f"{site.folder.replace('/', ',')},seed={seed}"

    def _record(self, records: Sequence[Record]) -> Record:
        """The mean over all, with the worst site's explained variance where there are several."""
        if len(records) == 1:
            return dict(records[0])
        merged = {name: _mean([record[name] for record in records]) for name in records[0]}
        by_site: dict[Site, list[float]] = {}
        for (site, _), record in zip(self.trainers, records, strict=True):
            by_site.setdefault(site, []).append(record["explained_variance"])
        if len(by_site) > 1:
            merged[WORST] = min((_mean(values) for values in by_site.values()), key=_nan_first)
        return merged

    def _stability(self) -> float | None:
        """The mean agreement of two seeds at one site, over the latents that are alive; None with one
        seed."""
        by_site: dict[Site, list[Trainer]] = {}
        for (site, _), trainer in self.trainers.items():
            by_site.setdefault(site, []).append(trainer)
        matches = [
            best_match(one.live_decoder(), other.live_decoder())
            for trainers in by_site.values()
            for one, other in itertools.combinations(trainers, 2)
        ]
        return fmean(matches) if matches else None


def _mean(values: Sequence[Any]) -> Any:
    """The mean of numbers; of counts that are all the same, the count; whether any, of flags."""
    if isinstance(values[0], bool):
        return any(values)
    if all(value == values[0] for value in values):
        return values[0]
    return math.nan if any(value is None for value in values) else fmean(values)


def _nan_first(value: float) -> float:
    return -math.inf if value != value else value
