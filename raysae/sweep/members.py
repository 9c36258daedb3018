"""The trainings that make up one trial: its config at each of the sweep's sites, with each of its seeds.

A trial's figures are means over them. Where they stand can be kept on disk, so that a trial that is cut
off goes on from there, to the same bits. Shapes: B batch, D d_in.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from torch import Tensor

from raysae.files import remove_folder
from raysae.remote import discard_packed, push_packed
from raysae.sae.dictionary import best_match
from raysae.sites import Site
from raysae.training import NonFiniteLossError, Trainer, has_training, load_training, save_training

Record = dict[str, Any]
Key = tuple[Site, int]
"""A site and a seed."""
WORST = "explained_variance_worst"
STABILITY = "stability"


class OutOfTimeError(Exception):
    """The trial has used up ``sweep.max_seconds_per_trial``."""


class Members:
    """The trainings of a trial, by site and seed; they go on from where ``kept`` has them.

    ``max_seconds`` is how long they may train together. Raises UserError when what was kept is of
    another training, or damaged.
    """

    def __init__(
        self, trainers: Mapping[Key, Trainer], kept: Path, max_seconds: float | None = None
    ):
        self.trainers, self.kept, self.max_seconds = dict(trainers), kept, max_seconds
        self.histories: dict[Key, list[Record]] = {key: [] for key in trainers}
        self.failure: Exception | None = None
        """What a training raised; the trial then goes no further."""
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

    @property
    def sound(self) -> bool:
        """Whether no training has failed."""
        return self.failure is None

    @property
    def going(self) -> bool:
        """Whether there are steps to come."""
        return self.sound and any(t.step < t.steps for t in self.trainers.values())

    @property
    def passed(self) -> int:
        """Evaluations that all have passed."""
        return min(len(history) for history in self.histories.values())

    def take(self, key: Key, batch_BD: Tensor) -> bool:
        """Train one of them on a batch; whether it was measured then. What that raises is kept as
        ``failure``."""
        try:
            record = self.trainers[key].take(batch_BD)
            self._check_time()
        except Exception as error:  # one bad trial must not take the others down
            self.failure = self._named(key, error)
            return False
        if record is not None:
            self.histories[key].append(record)
        return record is not None

    def end(self, key: Key) -> None:
        """There are no more rows for one of them."""
        trainer = self.trainers[key]
        if self.sound and trainer.step < trainer.steps:
            self.histories[key].append(trainer.end())

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
        if begun:
            push_packed(self.kept)

    def forget(self) -> None:
        """Remove what was kept."""
        remove_folder(self.kept)
        discard_packed(self.kept)

    def _check_time(self) -> None:
        if self.max_seconds is None:
            return
        spent = sum(t.seconds + t.feed.waited for t in self.trainers.values())
        if spent > self.max_seconds:
            raise OutOfTimeError(f"it had trained for {spent:.1f} s of {self.max_seconds:g} s")

    def _named(self, key: Key, error: Exception) -> Exception:
        """The error, with the site and seed where there are several."""
        if len(self.trainers) == 1 or not isinstance(error, NonFiniteLossError):
            return error
        site, seed = key
        return NonFiniteLossError(f"seed {seed} at {site}: {error}").with_traceback(
            error.__traceback__
        )

    def _folder(self, key: Key) -> Path:
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
