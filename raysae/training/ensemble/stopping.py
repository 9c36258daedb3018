"""Rules that stop a member before its last step: a time budget, and rules on its evaluations."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from raysae.training.ensemble.members import Member


class Budget:
    """A limit of ``seconds`` on the training time of ``members`` together, with their waiting for
    rows.

    None is no limit. A member that has made its last step cannot exceed its budget.
    """

    def __init__(self, seconds: float | None, members: "Sequence[Member]"):
        self.seconds, self.members = seconds, members
        self.exceeded: str | None = None
        """How the budget was exceeded, in words; None before that."""

    def check(self) -> str | None:
        """Compare the time spent with the limit; returns ``exceeded``."""
        if self.seconds is None or self.exceeded is not None:
            return self.exceeded
        spent = sum(member.seconds for member in self.members)
        if spent > self.seconds:
            self.exceeded = f"it had trained for {spent:.1f} s of {self.seconds:g} s"
        return self.exceeded


@dataclass(frozen=True)
class StopRules:
    """Rules that stop a member of an ensemble, in addition to its budget."""

    degenerate: bool = False
    """Whether a member stops when no latent fires at an evaluation."""
    keep: "Callable[[Member, dict[str, Any]], bool] | None" = None
    """Called with a member and its record at each evaluation; returns whether it continues."""

    def reason(self, member: "Member", record: dict[str, Any] | None) -> str | None:
        """Why ``member`` stops after this step; None when it continues or has made its last step.

        ``record`` is that of the evaluation at this step, or None.
        """
        trainer = member.trainer
        at = f"at step {trainer.step} of {trainer.steps}"
        if trainer.step == trainer.steps:
            return None
        if self.degenerate and record is not None and record["degenerate"]:
            return f"degenerate {at}: no latent fires on the validation rows"
        exceeded = member.budget.check() if member.budget is not None else None
        if exceeded is not None:
            return f"{at} {exceeded}"
        if record is not None and self.keep is not None and not self.keep(member, record):
            return f"stopped by keep {at}"
        return None
