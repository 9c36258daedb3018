"""raysae's gauges among Ray's metrics: a Prometheus that scrapes Ray's nodes finds them as ``ray_NAME``.

Their tags are the study, the stage and a state, never a config: a sweep of a thousand trials has as many
series as one of ten.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

TAGS = ("study", "stage")
"""The tags of every gauge: the run's name (none for scans), and ``trials``, ``sites``, ``analysis`` or
``scan``."""
STATE = "state"
ITEMS = "raysae_items"
STATES = ("running", "done", "failed", "stopped")
GAUGES: Mapping[str, str] = {
    ITEMS: "Trials, sites or items of the analysis, by state",
    "raysae_items_expected": "Items that the stage has in all",
    "raysae_best_explained_variance": "The best explained variance of the stage so far",
    "raysae_explained_variance": "Mean explained variance of the items at their last evaluation",
    "raysae_tokens": "Training tokens of all items of the stage so far",
    "raysae_tokens_per_second": "Training tokens a second of the items that run, together",
    "raysae_wait_seconds": "Seconds for which the items have waited for data, together",
    "raysae_memory_bytes": "Memory of the largest item, as it was last reported",
    "raysae_scan_bytes": "Bytes that scans have read, or live passes computed, so far",
    "raysae_scan_held_bytes": "Bytes that scans hold for their readers",
    "raysae_scans": "Scans and live passes that were begun",
    "raysae_live_tokens": "Tokens that the model has read for live training",
}
"""The gauges by name, and what each says."""


@dataclass
class Gauges:
    """The gauges of one study; they are made when the first is set, on a connected Ray."""

    study: str = ""
    _made: dict[str, Any] = field(default_factory=dict)

    def set(self, name: str, value: float, stage: str, state: str = "") -> None:
        """Set a gauge; ``state`` is given for ``ITEMS`` alone. Does nothing without a Ray."""
        import ray

        if not ray.is_initialized():
            return
        tags = {"study": self.study, "stage": stage}
        if state:
            tags[STATE] = state
        self._gauge(name).set(value, tags=tags)

    def _gauge(self, name: str) -> Any:
        if name not in self._made:
            from ray.util.metrics import Gauge

            keys = (*TAGS, STATE) if name == ITEMS else TAGS
            self._made[name] = Gauge(name, description=GAUGES[name], tag_keys=keys)
        return self._made[name]
