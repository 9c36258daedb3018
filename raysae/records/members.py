"""The members of one trial: trainings of its config, one for each site and seed of the sweep.

A trial's figures are means over its members. ``raysae.training.ensemble`` trains them. A site of the
atlas has members, too, one for each seed.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import stdev
from typing import Any

from torch import Tensor

from raysae.metrics import mean, merged
from raysae.sae.dictionary import agreement
from raysae.sae.indicators import chance_agreement
from raysae.sites import Site
from raysae.training import NonFiniteLossError, Trainer
from raysae.training.ensemble import Budget, Member

Record = dict[str, Any]
Key = tuple[Site, int]
"""A site and a seed."""
WORST = "explained_variance_worst"
SEED_SPREADS = ("explained_variance", "decoder_cosine_mean_abs", "decoder_projection")
"""The metrics whose standard deviation between seeds is recorded."""


class OutOfTimeError(Exception):
    """A trial has trained for ``sweep.max_seconds_per_trial``."""


class Members:
    """The members of a trial, by site and seed; each has its checkpoint in a folder of ``checkpoints``.

    ``max_seconds`` limits the sum of their training times, with waiting; None means no limit. A member
    that is alone may have ``checkpoints`` itself, not a folder in it (``apart`` false).
    """

    def __init__(
        self,
        members: Mapping[Key, Member],
        checkpoints: Path,
        max_seconds: float | None = None,
        apart: bool = True,
    ):
        self.members, self.checkpoints = dict(members), checkpoints
        self.budget = Budget(max_seconds, list(self.members.values()))
        for (site, seed), member in self.members.items():
            name = f"{site.folder.replace('/', ',')},seed={seed}"
            member.budget = self.budget
            member.checkpoint = checkpoints / name if apart else checkpoints

    @property
    def trainers(self) -> dict[Key, Trainer]:
        """The trainers of the members that have begun."""
        return {key: member.trainer for key, member in self.members.items() if member.begun}

    @property
    def first(self) -> Trainer:
        """The trainer of the first site and seed; the trial's folder holds its SAE."""
        return next(iter(self.trainers.values()))

    @property
    def history(self) -> list[Record]:
        """The trial's record at each evaluation that all members have passed."""
        rounds = zip(*(member.history for member in self.members.values()), strict=False)
        return [self._record(records) for records in rounds]

    @property
    def cost(self) -> Record:
        """What all members cost: tokens, tokens per second, and seconds spent waiting for rows."""
        trainers = self.trainers.values()
        seconds = sum(member.seconds for member in self.members.values())
        tokens = sum(t.tokens for t in trainers)
        return {
            "tokens_trained": tokens,
            "tokens_per_second": tokens / max(seconds, 1e-9),
            "wait_seconds": sum(t.feed.waited for t in trainers),
        }

    @property
    def failure(self) -> Exception | None:
        """What ended the trial early: the error of a training, or OutOfTimeError."""
        for key, member in self.members.items():
            if member.failure is not None:
                return self._named(key, member.failure)
        return OutOfTimeError(self.budget.exceeded) if self.budget.exceeded is not None else None

    @property
    def active(self) -> bool:
        """Whether any member has steps left."""
        return any(member.active for member in self.members.values())

    def release(self) -> None:
        """Free what only steps need. No step can follow; the figures and the SAEs remain."""
        for trainer in self.trainers.values():
            trainer.release()

    def final_metrics(self) -> Record:
        """The trial's figures at its end: means, the worst site's explained variance, and the agreement
        of seeds (``stability``)."""
        records = [trainer.final_metrics() for trainer in self.trainers.values()]
        return {**self._record(records), **self._agreement(), **self._between_seeds(records)}

    def beside(
        self, provenance: Callable[[Site], dict[str, Any]]
    ) -> dict[str, tuple[Trainer, dict[str, Any]]]:
        """The trainers of all members but the first, each with the provenance of its rows, by name."""
        return {
            f"{site.folder},seed={seed}": (trainer, provenance(site))
            for (site, seed), trainer in self.trainers.items()
            if trainer is not self.first
        }

    def end_with(self, ended: Member) -> None:
        """End all members if ``ended`` is one of them: without one of them there are no figures."""
        if ended in self.members.values():
            for other in self.members.values():
                other.stop("another training of this trial ended early")

    def discard_checkpoints(self) -> None:
        """Remove the members' checkpoints and save no further ones."""
        for member in self.members.values():
            member.discard_checkpoint()

    def _named(self, key: Key, error: Exception) -> Exception:
        """The error, with the site and seed where there are several."""
        if len(self.members) == 1 or not isinstance(error, NonFiniteLossError):
            return error
        site, seed = key
        return NonFiniteLossError(f"seed {seed} at {site}: {error}").with_traceback(
            error.__traceback__
        )

    def _record(self, records: Sequence[Record]) -> Record:
        """The mean over all members, with the worst site's explained variance if there are several."""
        if len(records) == 1:
            return dict(records[0])
        together = merged(records)
        by_site: dict[Site, list[float]] = {}
        for (site, _), record in zip(self.members, records, strict=True):
            by_site.setdefault(site, []).append(record["explained_variance"])
        if len(by_site) > 1:
            means = (mean(values) for values in by_site.values())
            together[WORST] = min(means, key=_nan_first)
        return together

    def _agreement(self) -> dict[str, float]:
        """The mean agreement of two seeds at one site, over live latents, and that of random
        dictionaries of the same shapes; empty with one seed."""
        by_site: dict[Site, list[Tensor]] = {}
        for (site, _), trainer in self.trainers.items():
            by_site.setdefault(site, []).append(trainer.live_decoder())
        if max(map(len, by_site.values())) < 2:
            return {}
        chance = mean(
            [
                chance_agreement(len(first), len(second), first.shape[1])
                for first, second, *_ in by_site.values()
            ]
        )
        return {**agreement(by_site.values()), "stability_chance": chance}

    def _between_seeds(self, records: Sequence[Record]) -> dict[str, float]:
        """The standard deviation between seeds of each of ``SEED_SPREADS``, as a mean over the sites;
        empty with one seed."""
        by_site: dict[Site, list[Record]] = {}
        for (site, _), record in zip(self.trainers, records, strict=True):
            by_site.setdefault(site, []).append(record)
        if max(map(len, by_site.values())) < 2:
            return {}
        return {
            f"{name}_seeds": mean([_deviation(name, group) for group in by_site.values()])
            for name in SEED_SPREADS
        }


def _deviation(name: str, records: Sequence[Record]) -> float:
    values = [record[name] for record in records]
    return math.nan if any(map(math.isnan, values)) else stdev(values)


def _nan_first(value: float) -> float:
    return -math.inf if value != value else value
