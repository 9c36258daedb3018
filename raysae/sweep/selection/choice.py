"""What a rule chooses."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Choice:
    """What a rule chooses: a trial's number or None, and the reason."""

    trial: int | None
    reason: str
    more: Mapping[str, Any] = field(default_factory=dict)
    """What else the rule says, by name, for ``selection.json``."""

    @property
    def entry(self) -> dict[str, Any]:
        """The choice in ``selection.json``."""
        return {"trial": self.trial, "reason": self.reason, **self.more}
