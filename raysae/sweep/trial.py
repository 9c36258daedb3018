"""One trial: one SAE config on a fraction of the machine, as Ray Tune runs it."""

import faulthandler
import time
import traceback
from collections.abc import Iterator, Mapping
from io import TextIOWrapper
from pathlib import Path
from typing import Any

from ray import tune
from torch import Tensor

from raysae.activations.reading import OpenSite
from raysae.cluster.worker import memory_used, prepare_worker
from raysae.config import Recipe
from raysae.files import read_json, remove_folder, write_text
from raysae.records.commit import commit, committed
from raysae.records.folder import trial_folder
from raysae.sites import Site
from raysae.sweep.members import Members
from raysae.training import NonFiniteLossError, Trainer

ALARM_EVERY = 1.0
"""Seconds between two settings of the alarm that ends a hung worker."""


class OutOfTimeError(Exception):
    """The trial has used up ``sweep.max_seconds_per_trial``."""


class SAETrial(tune.Trainable):
    """Trains a proposed config round by round; the folder it commits is the trial's record.

    A trial that was committed before reports its figures at once. A trial that fails reports why
    and ends, so that the actor, and its mapped data, serve the next one. One that hangs takes its
    worker with it; it then ends as failed where it is taken up again.
    """

    def setup(
        self,
        config: dict[str, Any],
        *,
        recipe: Recipe,
        sites: Mapping[Site, OpenSite],
        run_path: Path,
        go: str,
        fingerprint: str,
        provenance: dict[str, Any],
        truth: Tensor | None,
    ) -> None:
        """Open the rows, once an actor; ``config`` holds the trial's number and parameters.

        ``go`` names this go at the run: what hung in another is tried again.
        """
        self.recipe, self.run_path, self.go = recipe, run_path, go
        self.fingerprint, self.provenance, self.truth = fingerprint, provenance, truth
        self.device = prepare_worker()
        self.rows = {
            site: {split: opened.rows(split) for split in ("train", "validation")}
            for site, opened in sites.items()
        }
        self._begin(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._begin(new_config)
        return True

    def step(self) -> dict[str, Any]:
        try:
            return self._advance()
        except OutOfTimeError as error:
            assert self.members is not None
            return {**self.last, **self._cost(self.members), "done": True, "stopped": str(error)}
        except Exception as error:  # one bad trial must not take the others down
            write_text(self.folder.with_suffix(".failure.txt"), traceback.format_exc())
            return {"done": True, "failed": _reason(error)}
        finally:
            self._disarm()

    def cleanup(self) -> None:
        self._forget()

    def _begin(self, config: dict[str, Any]) -> None:
        self._forget()
        self.started = self.alarmed = time.time()
        self.job = {
            "trial": config["trial"],
            "parameters": config["parameters"],
            "fingerprint": self.fingerprint,
        }
        self.folder = trial_folder(self.run_path, config["trial"])
        self.hung = self.folder.with_suffix(f".hung-{self.go}.txt")

    def _forget(self) -> None:
        self.members: Members | None = None
        self.rounds: Iterator[dict[str, Any]] = iter(())
        self.last: dict[str, Any] = {}
        self.alarm: TextIOWrapper | None = None
        if getattr(self, "device", "cpu") == "cuda":
            import torch

            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def _advance(self) -> dict[str, Any]:
        if self.members is None:
            ended = self._ended_before()
            if ended is not None:
                return ended
            self._arm()
            self.members = self._make_members()
            self.rounds = self.members.rounds()
        members = self.members
        record = next(self.rounds, None) or members.history[-1]
        last = members.share >= 1
        self.last = {**record, **self._cost(members)}
        if last:
            self.last |= self._commit(members)
        return {**self.last, "done": last, "committed": last}

    def _cost(self, members: Members) -> dict[str, Any]:
        """How far the trial has come, and what that took."""
        came = {"step": members.first.step, "steps": members.first.steps}
        return {**members.cost, **came, "memory_bytes": memory_used(self.device)}

    def _ended_before(self) -> dict[str, Any] | None:
        """The last report of a trial that came to its end in an earlier go, or hung in this one."""
        if self.hung.is_file() and self.hung.stat().st_size:
            waited = self.recipe.resources.hang_seconds
            return {"done": True, "failed": f"hung: no step for {waited:g} s; see {self.hung}"}
        record = committed(self.folder, self.job)
        if record is not None:
            return {**_live(record), "done": True, "committed": True}
        stopped = self.folder.with_suffix(".stopped.json")
        if stopped.is_file():
            record = read_json(stopped)
            if all(record.get(key) == value for key, value in self.job.items()):
                return {**record["last"], "done": True, "stopped": record["reason"]}
        return None

    def _commit(self, members: Members) -> dict[str, Any]:
        cost = {**members.cost, "memory_bytes": memory_used(self.device)}
        record = commit(
            members.first, self.folder, self.job, self.provenance, members.history, self.started,
            metrics=members.final_metrics(), cost=cost,
            beside={
                f"{site.folder},seed={seed}": trainer
                for (site, seed), trainer in members.trainers.items()
                if trainer is not members.first
            },
        )  # fmt: skip
        members.forget()
        return record["metrics"]

    def _make_members(self) -> Members:
        sae_config, training = self.recipe.with_parameters(self.job["parameters"])
        seeds = range(self.recipe.seed, self.recipe.seed + self.recipe.sweep.seeds_per_trial)
        trainers = {
            (site, seed): Trainer(
                sae_config, training, rows["train"], rows["validation"], seed=seed,
                device=self.device, truth=self.truth,
            )
            for site, rows in self.rows.items()
            for seed in seeds
        }  # fmt: skip
        kept = self.folder.with_suffix(".training")
        seconds = self.recipe.resources.checkpoint_seconds
        try:
            return Members(trainers, kept, seconds, self._alive)
        except Exception:  # what was kept is of another job, or damaged: from the start, then
            remove_folder(kept)
            return Members(trainers, kept, seconds, self._alive)

    def _alive(self) -> None:
        """A step has been made."""
        now, limit = time.time(), self.recipe.sweep.max_seconds_per_trial
        if limit is not None and self.members is not None:
            spent = sum(t.seconds + t.feed.waited for t in self.members.trainers.values())
            if spent > limit:
                raise OutOfTimeError(f"it had trained for {spent:.1f} s of {limit:g} s")
        if now - self.alarmed >= ALARM_EVERY:
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


def _live(record: dict[str, Any]) -> dict[str, Any]:
    """A committed trial's figures in the form of a last report."""
    kept = ("tokens", "tokens_trained", "steps", "tokens_per_second")
    counts = {key: record[key] for key in kept}
    return {**record["metrics"], **counts, "step": record["steps"]}


def _reason(error: Exception) -> str:
    import torch

    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    if isinstance(error, NonFiniteLossError):
        return text
    if isinstance(error, torch.OutOfMemoryError):
        return f"out of GPU memory: {text}; raise resources.gpus_per_trial or lower batch_size"
    if isinstance(error, MemoryError) or "can't allocate memory" in text:
        return f"out of memory: {text}; lower d_sae, batch_size or resources.max_concurrent"
    return f"{type(error).__name__}: {text}"
