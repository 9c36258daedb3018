"""What measures a trial's SAEs at its end; given to the sweep, which knows no model itself."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from raysae.records.members import Key
from raysae.sae import SAE

Figures = Mapping[str, Any]


class Judge(Protocol):
    """Is sent to every worker, and opened there."""

    def opened(self, device: str) -> "Judge":
        """The same for a worker's device. What it needs is opened when it first judges."""
        ...

    def figures(self, saes: Mapping[Key, SAE], alive: Callable[[], None]) -> Figures:
        """Metrics of a trial's SAEs, by name; ``alive`` is called after every step.

        Raises UserError when they cannot be measured.
        """
        ...
