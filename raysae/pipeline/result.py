"""The result of a run, and what failed in it."""

from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raysae.activations import open_store
from raysae.errors import UserError
from raysae.records.choice import GIVEN
from raysae.records.folder import RunFolder
from raysae.records.mlflow_listener import tracking_uri
from raysae.records.rows import Row, SiteRow, TrialRow

if TYPE_CHECKING:
    from raysae.sae import SAE


@dataclass
class SweepResult:
    """The result of a run."""

    run: RunFolder
    trials: list[TrialRow] = field(default_factory=list)
    """The rows of ``trials.parquet``."""
    selection: dict[str, Any] = field(default_factory=dict)
    """The content of ``selection.json``."""
    controls: dict[str, Any] = field(default_factory=dict)
    """The content of ``controls.json``; empty without controls."""
    scaling: dict[str, Any] = field(default_factory=dict)
    """The content of ``scaling.json``; empty without a search."""
    atlas: list[SiteRow] = field(default_factory=list)
    """The rows of ``atlas/metrics.parquet``."""
    records_lost: int = 0
    """Records that MLflow did not take."""
    records_reason: str = ""
    """Why MLflow did not take them."""
    broken: dict[str, str] = field(default_factory=dict)
    """Stages after the training that failed as a whole, and why."""

    @property
    def d_in(self) -> int:
        """The width of the activations. Raises UserError when the store is gone."""
        return open_store(self.run.recipe.store_place).d_in

    @property
    def folder(self) -> Path:
        """The run folder."""
        return self.run.path

    @property
    def sae(self) -> "SAE":
        """The sweet spot's SAE. Raises UserError when no sweet spot was chosen."""
        from raysae.sae import load_sae

        return load_sae(self.run.sweet_spot)

    @property
    def tracking_uri(self) -> str | None:
        """Where MLflow has the run's records; None when the recipe turns MLflow off."""
        return tracking_uri(self.run) if self.run.recipe.records.mlflow else None

    @property
    def failed_trials(self) -> list[str]:
        """Trials that failed, a line each; those stopped by a rule of the recipe are not among them."""
        return [
            f"trial {row.trial}: {_undone(row)}"
            for row in self.trials
            if _undone(row) and row.state != "stopped"
        ]

    @property
    def missing_choice(self) -> list[str]:
        """One line when the rule chose no trial though it should; else empty."""
        if not self.selection or self.selection["choice"]["trial"] is not None:
            return []
        if "select" in self.broken:
            return []
        if self.selection["rule"] in ("pareto", GIVEN):
            return []  # the choice is left to the user, or was made before
        choice = self.selection["choice"]
        return [f"rule {self.selection['rule']} chose nothing: {choice['reason']}"]

    @property
    def failed_controls(self) -> list[str]:
        """Controls that failed, a line each; those that cannot be made are not among them."""
        made = self.controls.get("controls", {})
        return [f"control {name}: {one['reason']}" for name, one in made.items() if "failed" in one]

    @property
    def failed_sites(self) -> list[str]:
        """Sites of the atlas that failed, a line each."""
        return [f"{row.site}: {_undone(row)}" for row in self.atlas if _undone(row)]

    @property
    def failures(self) -> list[str]:
        """What failed, a line each; empty when the whole run is done."""
        return [
            *self.failed_trials, *self.missing_choice, *self.failed_controls, *self.failed_sites,
            *self.failed_stages,
        ]  # fmt: skip

    @property
    def failed_stages(self) -> list[str]:
        """Stages after the training that failed as a whole, a line each."""
        return [f"{stage}: {reason}" for stage, reason in self.broken.items()]

    def stage_failed(self, stage: str, reason: str) -> None:
        """Note that a stage failed, here and in ``status.json``; the next attempt tries it again."""
        self.broken[stage] = reason
        if stage == "select":
            choice = {"trial": None, "reason": f"the stage failed: {reason}"}
            self.selection = {"rule": self.run.recipe.select.rule, "choice": choice, "choices": {}}
        if self.run.state(stage) != "failed":
            with suppress(OSError, UserError):  # a full disk, a URI that does not answer
                self.run.mark_failed(stage, reason)


def _undone(row: Row) -> str:
    """Why a trial or a site is not done; empty when it is."""
    prefix = "degenerate: " if row.state == "degenerate" else ""
    return "" if row.done else prefix + row.reason
