"""Why a member ends before its last step: one rule for time, one for what its evaluations show."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from raysae.training.ensemble.members import Member


class Budget:
    """Seconds that ``members`` may take together, with the waiting for their rows; None: any number.

    A member that makes its last step has not exceeded its budget.
    """

    def __init__(self, seconds: float | None, members: "Sequence[Member]"):
        self.seconds, self.members = seconds, members
        self.exceeded: str | None = None
        """How the budget was exceeded, in words, once it was."""

    def check(self) -> str | None:
        """``exceeded``, as it is now."""
        if self.seconds is None or self.exceeded is not None:
            return self.exceeded
        spent = sum(member.seconds for member in self.members)
        if spent > self.seconds:
            self.exceeded = f"it had trained for {spent:.1f} s of {self.seconds:g} s"
        return self.exceeded


@dataclass(frozen=True)
class StopRules:
    """What ends a member of an ensemble, beside its budget."""

    degenerate: bool = False
    """Whether a member ends when no latent fires at an evaluation."""
    keep: "Callable[[Member, dict[str, Any]], bool] | None" = None
    """Whether a member continues after an evaluation, by its record."""

    def reason(self, member: "Member", record: dict[str, Any] | None) -> str | None:
        """Why ``member`` ends after this step, at which it may have been evaluated; None: it continues,
        or has made its last step."""
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
            return f"not kept {at}"
        return None
