"""The trainable that Ray Tune runs: a trial, or a gang of trials on the same batches."""

from collections.abc import Iterator, Mapping
from typing import Any

from ray import tune

from raysae.cluster.alarm import HangAlarm
from raysae.cluster.reading import OpenSite, fetched_site
from raysae.cluster.worker import end_if_lost, forget_peak, prepare_worker
from raysae.config import Recipe
from raysae.records.members import Key
from raysae.records.products import seeds_of, stopping, trial_of
from raysae.records.run_files import RunFiles
from raysae.redaction import redacted_errors
from raysae.sae import SAE, SAEConfig
from raysae.sae.truth import Truth
from raysae.sites import Site
from raysae.sweep.trials.gang import GANG, Gang, shared_settings
from raysae.sweep.trials.judge import Figures, Judge
from raysae.sweep.trials.trial import Report, Trial
from raysae.training import TrainingConfig
from raysae.training.ensemble import Member, StatisticsCache


class SAETrials(tune.Trainable):
    """Trains the proposed configs of a gang round by round; each trial commits its own folder.

    A trial that fails reports why and ends; the actor and its mapped data serve the next gang. A trial
    that hangs ends its worker and its gang. When Tune starts that gang again, its trials end as failed.
    """

    _ended: bool
    """Whether all trials of the gang have ended, and Tune was told so."""

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
        truth: Truth | None,
        judge: Judge | None = None,
    ) -> None:
        """Open the rows, once per actor; ``config`` holds the trials' numbers and parameters.

        ``attempt`` names this attempt at the run; a gang that hung in another attempt is tried again.
        ``store`` is the store's digest. ``truth`` is what is known of a synthetic store's
        rows, else None. ``judge`` measures the SAEs of every trial at its end.
        """
        self.recipe, self.attempt, self.store = recipe, attempt, store
        self.provenance, self.truth = provenance, truth
        with redacted_errors():  # Tune writes what is raised here to a file
            self.files, self.device = files.on_this_node(), prepare_worker()
            self.judge = None if judge is None else judge.opened(self.device)
            self._open(sites)
            self.statistics = StatisticsCache()
            self._begin(config)

    def _open(self, sites: Mapping[Site, OpenSite]) -> None:
        uri = self.recipe.store_uri
        if uri is not None and self.recipe.resources.copy_store:
            sites = {site: fetched_site(opened, uri) for site, opened in sites.items()}
        self.rows = {
            site: {split: opened.rows(split).to(self.device) for split in ("train", "validation")}
            for site, opened in sites.items()
        }

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Begin another gang in the same actor."""
        with redacted_errors():
            self._begin(new_config)
        return True

    def step(self) -> Report:
        """Train until the next evaluation; the reports of all trials of the gang.

        Raises RuntimeError when the gang has ended. Tune asks for more when it gives this actor to
        another gang without its config, as can happen when a node is lost; it then tries again. Ends the
        process when its GPU is lost: Tune then starts the gang in another one.
        """
        if self._ended:
            raise RuntimeError("this worker was given to another trial without its settings")
        try:
            next(self.rounds, None)
        except Exception as error:  # an error of the whole gang; the actor stays usable
            end_if_lost(error)
            for trial in self.unfinished:
                trial.fail(error)
        finally:
            self.alarm.cancel()
        reports = [{"trial": trial.asked["trial"], **trial.report} for trial in self.trials]
        self._ended = not self.unfinished
        alone = reports[0] if len(reports) == 1 else {}  # Tune's schedulers read the top level
        return {**alone, GANG: reports, "done": self._ended}

    def cleanup(self) -> None:
        """Free the trials when the actor ends."""
        self._forget()

    @property
    def unfinished(self) -> list[Trial]:
        """The trials that have not ended."""
        return [trial for trial in self.trials if not trial.ended]

    def _begin(self, config: dict[str, Any]) -> None:
        self._forget()
        self._ended = False
        self.trials: list[Trial] = [self._trial(asked) for asked in config[GANG]]
        hung = self.trials[0].folder.with_suffix(f".hung-{self.attempt}.txt")
        self.alarm = HangAlarm(hung, self.recipe.resources.hang_seconds)
        self.rounds: Iterator[None] = self._train()

    def _trial(self, asked: dict[str, Any]) -> Trial:
        made = trial_of(self.recipe, self.store, list(self.rows), asked["parameters"])
        judge = None if self.judge is None else self._judged
        return Trial(asked, self.files, self.device, made, stopping(self.recipe), judge)

    def _judged(self, saes: Mapping[Key, SAE]) -> Figures:
        assert self.judge is not None
        return self.judge.figures(saes, self.alarm.step)

    def _forget(self) -> None:
        self.trials, self.rounds = [], iter(())
        forget_peak()
        if getattr(self, "device", "cpu") == "cuda":
            import torch

            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def _train(self) -> Iterator[None]:
        """Train the unfinished trials; those that take the same batches are trained together."""
        if self.alarm.rang:
            for trial in self.unfinished:
                trial.hang(self.alarm.seconds, self.alarm.file)
        gangs: dict[tuple[object, ...], list[Trial]] = {}
        for trial in self.unfinished:
            _, training = self._config(trial)
            gangs.setdefault(shared_settings(training), []).append(trial)
        for gang in gangs.values():
            yield from self._train_gang(gang)

    def _config(self, trial: Trial) -> tuple[SAEConfig, TrainingConfig]:
        return self.recipe.with_parameters(trial.asked["parameters"])

    def _train_gang(self, trials: list[Trial]) -> Iterator[None]:
        self.alarm.set()
        begun = []
        for trial in trials:
            try:
                members = self._members(*self._config(trial))
                begun.append(trial.begin(members, self.recipe.sweep.max_seconds_per_trial))
            except Exception as error:
                trial.fail(error)
        gang = Gang(
            begun, self.recipe.resources.checkpoint_seconds, self.alarm.step, self.device,
            self.statistics, self.files.send_checkpoint,
        )  # fmt: skip
        for _ in gang.rounds():
            for trial in trials:
                if not trial.ended:
                    trial.advance(self.provenance)
            yield
            self.alarm.set()

    def _members(self, sae_config: SAEConfig, training: TrainingConfig) -> dict[Key, Member]:
        seeds = seeds_of(self.recipe)
        return {
            (site, seed): Member(
                sae_config, training, rows["train"], rows["validation"], seed, self.truth
            )
            for site, rows in self.rows.items()
            for seed in seeds
        }
