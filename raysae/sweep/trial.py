"""One trial: one SAE config on a fraction of the machine, as Ray Tune runs it."""

import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ray import tune
from torch import Tensor

from raysae.activations.reading import OpenSite
from raysae.cluster.worker import prepare_worker
from raysae.config import Recipe
from raysae.files import write_text
from raysae.records.commit import commit, committed
from raysae.records.folder import trial_folder
from raysae.training import NonFiniteLossError, Trainer


class SAETrial(tune.Trainable):
    """Trains a proposed config round by round; the folder it commits is the trial's record.

    A trial that was committed before reports its figures at once. A trial that fails reports why
    and ends, so that the actor, and its mapped data, serve the next one.
    """

    def setup(
        self,
        config: dict[str, Any],
        *,
        recipe: Recipe,
        site: OpenSite,
        run_path: Path,
        fingerprint: str,
        provenance: dict[str, Any],
        truth: Tensor | None,
    ) -> None:
        """Open the rows, once an actor; ``config`` holds the trial's number and parameters."""
        self.recipe, self.run_path = recipe, run_path
        self.fingerprint, self.provenance, self.truth = fingerprint, provenance, truth
        self.device = prepare_worker()
        self.rows = {split: site.rows(split) for split in ("train", "validation")}
        self._begin(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._begin(new_config)
        return True

    def step(self) -> dict[str, Any]:
        try:
            return self._advance()
        except Exception as error:  # one bad trial must not take the others down
            write_text(self.folder.with_suffix(".failure.txt"), traceback.format_exc())
            return {"done": True, "failed": _reason(error)}

    def cleanup(self) -> None:
        self._forget()

    def _begin(self, config: dict[str, Any]) -> None:
        self._forget()
        self.started = time.time()
        self.job = {
            "trial": config["trial"],
            "parameters": config["parameters"],
            "fingerprint": self.fingerprint,
        }
        self.folder = trial_folder(self.run_path, config["trial"])

    def _forget(self) -> None:
        self.trainer: Trainer | None = None
        self.rounds: Iterator[dict[str, Any]] = iter(())
        self.history: list[dict[str, Any]] = []
        if getattr(self, "device", "cpu") == "cuda":
            import torch

            torch.cuda.empty_cache()

    def _advance(self) -> dict[str, Any]:
        if self.trainer is None:
            record = committed(self.folder, self.job)
            if record is not None:
                return {**_live(record), "done": True}
            self._make_trainer()
        assert self.trainer is not None
        record = next(self.rounds)
        self.history.append(record)
        last = self.trainer.step == self.trainer.steps
        if last:
            commit(self.trainer, self.folder, self.job, self.provenance, self.history, self.started)
        return {
            **record,
            "steps": self.trainer.steps,
            "tokens_per_second": self.trainer.tokens_per_second,
            "done": last,
        }

    def _make_trainer(self) -> None:
        sae_config, training = self.recipe.with_parameters(self.job["parameters"])
        self.trainer = Trainer(
            sae_config, training, self.rows["train"], self.rows["validation"],
            seed=self.recipe.seed, device=self.device, truth=self.truth,
        )  # fmt: skip
        self.rounds = self.trainer.rounds()


def _live(record: dict[str, Any]) -> dict[str, Any]:
    """A committed trial's figures in the form of a last report."""
    counts = {key: record[key] for key in ("tokens", "steps", "tokens_per_second")}
    return {**record["metrics"], **counts, "step": record["steps"]}


def _reason(error: Exception) -> str:
    import torch

    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    if isinstance(error, NonFiniteLossError):
        return text
    if isinstance(error, torch.OutOfMemoryError):
        return f"out of GPU memory: {text}; raise resources.gpus_per_trial or lower batch_size"
    return f"{type(error).__name__}: {text}"
