"""One trial, from its parameters to its outcome: one SAE config, committed as a folder."""

import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from raysae.cluster.alarm import hang_reason
from raysae.cluster.worker import memory_used
from raysae.errors import UserError
from raysae.identity import Made
from raysae.metrics import registered
from raysae.records.commit import commit
from raysae.records.members import Key, Members, OutOfTimeError
from raysae.records.run_files import RunFiles
from raysae.redaction import first_line, traceback_of
from raysae.sae import SAE
from raysae.sites import Site
from raysae.storage.trouble import in_words, reason_in_words
from raysae.training import NonFiniteLossError
from raysae.training.ensemble import Member
from raysae.training.lost_device import raise_if_lost

Report = dict[str, Any]


class Trial:
    """One config of the sweep; ``report`` is its progress or outcome, for Tune, console and MLflow.

    ``asked`` holds its number and parameters, ``made`` what makes its SAEs, ``stopping`` the rules by
    which it may be stopped early; ``judge`` measures its SAEs at its end. A trial that an earlier attempt
    committed or stopped only reports.
    """

    def __init__(
        self,
        asked: Mapping[str, Any],
        files: RunFiles,
        device: str,
        made: Made,
        stopping: Made = MappingProxyType({}),
        judge: Callable[[Mapping[Key, SAE]], Mapping[str, Any]] | None = None,
    ):
        self.asked, self.files, self.device = dict(asked), files, device
        self.made, self.stopping, self.judge = dict(made), dict(stopping), judge
        self.folder = files.trial(self.asked["trial"])
        self.started, self.began = time.time(), time.monotonic()
        self.members: Members | None = None
        self.report: Report = {}
        try:
            self.report = self._ended_before() or {}
        except (OSError, UserError) as error:  # raised here, it would end the actor
            self.fail(error)

    @property
    def ended(self) -> bool:
        """Whether the trial is committed, stopped or failed."""
        return bool(self.report.get("done"))

    def begin(self, members: Mapping[Key, Member], max_seconds: float | None) -> Members:
        """Start the trial with ``members``, which continue from their checkpoints if they have any."""
        self.files.check_there()  # checkpoints would make a new folder in place of a deleted run
        self.members = Members(members, self.files.checkpoint(self.folder), max_seconds)
        return self.members

    def advance(self, provenance: Mapping[Site, dict[str, Any]]) -> None:
        """Report the evaluation just passed; commit after the last one."""
        members = self.members
        assert members is not None
        if members.failure is not None:
            self.fail(members.failure)
            return
        self.report = {**members.history[-1], **self._cost(members)}
        try:
            self.files.check_there()
        except UserError as error:
            self.fail(error)
            return
        if members.active:
            return
        try:
            self.report |= self._commit(members, provenance)
            self.report |= {"done": True, "committed": True}
        except Exception as error:
            self.fail(error)

    def fail(self, error: Exception) -> None:
        """End as failed, or as stopped if ``error`` is OutOfTimeError.

        The traceback of a failure is written beside the trial's folder. Raises ``error`` when the GPU
        of this process is lost: the trial has not failed, another worker can train it.
        """
        raise_if_lost(error)
        if isinstance(error, OutOfTimeError):
            assert self.members is not None
            cost = self._cost(self.members)
            reason = f"at step {cost['step']} of {cost['steps']}: {error}"
            self.report |= {**cost, "done": True, "stopped": reason}
        elif isinstance(error, UserError):
            self.report = {"done": True, "failed": str(error)}
        else:
            self._failed(_reason(error), traceback_of(error))
            print(
                traceback_of(error), file=sys.stderr
            )  # the worker's log, which Ray's dashboard shows
        if "failed" in self.report:
            told = f"trial {self.asked['trial']} failed: {self.report['failed']}"
            print(told, file=sys.stderr, flush=True)
        self.members = None

    def hang(self, seconds: float | None, trace: Path) -> None:
        """End as failed, because the worker made no step for ``seconds``; ``trace`` says where."""
        self.report = {"done": True, "failed": hang_reason(seconds, trace)}

    def _failed(self, reason: str, trace: str) -> None:
        file = self.folder.with_suffix(".failure.txt")
        hint = "" if "; " in reason else f"; its traceback is in trials/{file.name}"
        self.report = {"done": True, "failed": reason + hint}
        try:
            self.files.write_text(file, trace)
        except (OSError, UserError) as error:  # the disk may be full
            told = reason_in_words(error)
            self.report["failed"] = f"{reason} (the traceback could not be written: {told})"

    def _cost(self, members: Members) -> Report:
        """The steps done so far, and what they cost."""
        progress = {"step": members.first.step, "steps": members.first.steps}
        return {**members.cost, **progress, "memory_bytes": memory_used(self.device)}

    def _ended_before(self) -> Report | None:
        """The last report of a trial that ended in an earlier attempt; None when it did not."""
        record = self.files.committed(self.folder, self.made)
        if record is not None:
            self.files.send_commit(
                self.folder
            )  # an earlier attempt may have ended before it was sent
            return {**_live(record), "done": True, "committed": True}
        record = self.files.stopped(self.folder, {**self.made, **self.stopping})
        if record is not None:
            return {**record["last"], "done": True, "stopped": record["reason"]}
        return None

    def _commit(
        self, members: Members, provenance: Mapping[Site, dict[str, Any]]
    ) -> dict[str, Any]:
        cost = {**members.cost, "memory_bytes": memory_used(self.device)}
        (first_site, _), *_ = members.trainers
        job = {**self.asked, "made": self.made}
        members.release()  # before the last figures, which need memory of their own
        metrics = self._measured(members)
        record = commit(
            self.files, members.first, self.folder, job, provenance[first_site], members.history,
            self.started, seconds=time.monotonic() - self.began, metrics=metrics,
            cost=cost,
            beside=members.beside(lambda site: provenance[site]),
        )  # fmt: skip
        members.discard_checkpoints()
        self.files.remove_checkpoint(members.checkpoints)
        self.members = None
        return record["metrics"]

    def _measured(self, members: Members) -> dict[str, Any]:
        """The figures of the ended trial."""
        found = members.final_metrics()
        if self.judge is None:
            return found
        saes = {key: trainer.sae() for key, trainer in members.trainers.items()}
        return {**found, **self.judge(saes)}


def _live(record: dict[str, Any]) -> Report:
    """A committed trial's last report."""
    costs = [metric.name for metric in registered().values() if metric.cost]
    counts = {name: record[name] for name in costs if name in record and name != "wait_seconds"}
    return {**record["metrics"], **counts, "step": record["steps"]}


def _reason(error: Exception) -> str:
    import torch

    if isinstance(error, OSError):
        return in_words(error)
    text = first_line(error)
    if isinstance(error, NonFiniteLossError):
        return text
    if isinstance(error, torch.OutOfMemoryError):
        return f"out of GPU memory: {text}; lower batch_size, d_sae or resources.gang"
    if isinstance(error, MemoryError) or "can't allocate memory" in text:
        return f"out of memory: {text}; lower d_sae, batch_size or resources.max_concurrent"
    return f"{type(error).__name__}: {text}"
