"""What Ray Tune runs on a fraction of the machine: a trial, or a gang of trials on the same batches."""

import faulthandler
import time
from collections.abc import Iterator, Mapping
from io import TextIOWrapper
from typing import Any

from ray import tune
from torch import Tensor

from raysae.activations.reading import OpenSite, fetched_site
from raysae.cluster.worker import prepare_worker
from raysae.config import Recipe
from raysae.records.products import seeds_of, stopping, trained
from raysae.records.run_files import RunFiles
from raysae.sae import SAEConfig
from raysae.sites import Site
from raysae.sweep.gang import GANG, Gang, takes
from raysae.sweep.members import Key
from raysae.sweep.trial import Report, Trial
from raysae.training import Trainer, TrainingConfig
from raysae.training.initialisation import Footing, footing

ALARM_EVERY = 1.0
"""Seconds between two settings of the alarm that ends a hung worker."""


class SAETrials(tune.Trainable):
    """Trains the proposed configs of a gang round by round; the folders they commit are the record.

    A trial that fails says why, and ends; the actor, and its mapped data, serve the next one. One that
    hangs takes its worker, and its gang, with it; they end as failed where they are taken up again.
    """

    def setup(
        self,
        config: dict[str, Any],
        *,
        recipe: Recipe,
        sites: Mapping[Site, OpenSite],
        files: RunFiles,
        attempt: str,
        store: str,
        provenance: Mapping[Site, dict[str, Any]],
        truth: Tensor | None,
    ) -> None:
        """Open the rows, once an actor; ``config`` holds the trials' numbers and parameters.

        ``attempt`` names this attempt at the run: what hung in another is tried again. ``store`` is the
        store's digest.
        """
        self.recipe, self.attempt, self.store = recipe, attempt, store
        self.files, self.provenance, self.truth = files.on_this_node(), provenance, truth
        self.device = prepare_worker()
        if recipe.store_uri is not None:
            sites = {site: fetched_site(opened, recipe.store_uri) for site, opened in sites.items()}
        self.rows = {
            site: {split: opened.rows(split) for split in ("train", "validation")}
            for site, opened in sites.items()
        }
        self.footings: dict[tuple[Site, int, int], Footing] = {}
        self._begin(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._begin(new_config)
        return True

    def step(self) -> Report:
        try:
            next(self.rounds, None)
        except Exception as error:  # what they share; the actor serves on
            for trial in self.going:
                trial.fail(error)
        finally:
            self._disarm()
        reports = [{"trial": trial.asked["trial"], **trial.report} for trial in self.trials]
        alone = reports[0] if len(reports) == 1 else {}  # where a scheduler looks
        return {**alone, GANG: reports, "done": not self.going}

    def cleanup(self) -> None:
        self._forget()

    @property
    def going(self) -> list[Trial]:
        """The trials that have not ended."""
        return [trial for trial in self.trials if not trial.ended]

    def _begin(self, config: dict[str, Any]) -> None:
        self._forget()
        self.alarmed = time.time()
        self.trials: list[Trial] = [self._trial(asked) for asked in config[GANG]]
        self.hung = self.trials[0].folder.with_suffix(f".hung-{self.attempt}.txt")
        self.rounds: Iterator[None] = self._train()

    def _trial(self, asked: dict[str, Any]) -> Trial:
        settings = self.recipe.with_parameters(asked["parameters"])
        sites, seeds = list(self.rows), seeds_of(self.recipe)
        made = trained("trial", self.store, sites, seeds, *settings)
        return Trial(asked, self.files, self.device, made, stopping(self.recipe))

    def _forget(self) -> None:
        self.trials, self.rounds = [], iter(())
        self.alarm: TextIOWrapper | None = None
        if getattr(self, "device", "cpu") == "cuda":
            import torch

            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def _train(self) -> Iterator[None]:
        """Train the trials that are left, those together that take the same batches."""
        if self.hung.is_file() and self.hung.stat().st_size:
            for trial in self.going:
                trial.hang(self.recipe.resources.hang_seconds, self.hung)
        gangs: dict[tuple[object, ...], list[Trial]] = {}
        for trial in self.going:
            _, training = self._config(trial)
            gangs.setdefault(takes(training), []).append(trial)
        for gang in gangs.values():
            yield from self._train_gang(gang)

    def _config(self, trial: Trial) -> tuple[SAEConfig, TrainingConfig]:
        return self.recipe.with_parameters(trial.asked["parameters"])

    def _train_gang(self, trials: list[Trial]) -> Iterator[None]:
        self._arm()
        begun = []
        for trial in trials:
            try:
                trainers = self._trainers(*self._config(trial))
                begun.append(trial.begin(trainers, self.recipe.sweep.max_seconds_per_trial))
            except Exception as error:
                trial.fail(error)
        gang = Gang(begun, self.recipe.resources.checkpoint_seconds, self._alive)
        for _ in gang.rounds():
            for trial in trials:
                if not trial.ended:
                    trial.advance(self.provenance)
            yield
            self._arm()
        for trial in trials:  # cut off after its last step, before its commit
            if not trial.ended:
                trial.advance(self.provenance)

    def _trainers(self, sae_config: SAEConfig, training: TrainingConfig) -> dict[Key, Trainer]:
        seeds = seeds_of(self.recipe)
        return {
            (site, seed): Trainer(
                sae_config, training, rows["train"], rows["validation"], seed=seed,
                device=self.device, truth=self.truth,
                footing=self._footing(site, seed, training.shuffle_rows),
            )
            for site, rows in self.rows.items()
            for seed in seeds
        }  # fmt: skip

    def _footing(self, site: Site, seed: int, shuffle_rows: int) -> Footing:
        """The rows' scale, centre and mean, worked out once for all trials of this actor."""
        key = site, seed, shuffle_rows
        if key not in self.footings:
            rows = self.rows[site]
            self.footings[key] = footing(rows["train"], rows["validation"], seed, shuffle_rows)
        return self.footings[key]

    def _alive(self) -> None:
        """A step has been made."""
        if time.time() - self.alarmed >= ALARM_EVERY:
            self._arm()

    def _arm(self) -> None:
        """End this process unless there is a step in time, with a trace of where it hung."""
        self.alarmed = time.time()
        seconds = self.recipe.resources.hang_seconds
        if seconds is None:
            return
        if self.alarm is None:
            self.hung.parent.mkdir(parents=True, exist_ok=True)
            self.alarm = self.hung.open("w")
        # a thread in C: it rings even while Python cannot run
        faulthandler.dump_traceback_later(seconds, exit=True, file=self.alarm)

    def _disarm(self) -> None:
        faulthandler.cancel_dump_traceback_later()
        if self.alarm is not None:
            self.alarm.close()
            self.alarm = None
            self.hung.unlink(missing_ok=True)
