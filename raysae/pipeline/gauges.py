"""A run's progress as gauges of Ray, for Prometheus and Grafana."""

import math
import os
import threading
from collections.abc import Mapping
from typing import Any

from raysae.cluster.gauges import ITEMS, STATES, Gauges
from raysae.config import Recipe
from raysae.records.events import Began, Committed, Ended, Event, Failed, Item, Progressed, Stopped

STAGES = {"trial": "trials", "atlas": "sites", "analysis": "analysis"}
"""The stage of an item, by the beginning of its key."""

REFRESH_SECONDS = 5.0


def wants_gauges(recipe: Recipe) -> bool:
    """Whether somebody may look: a dashboard was asked for, or Ray is a cluster."""
    resources = recipe.resources
    return resources.dashboard or bool(resources.address or os.environ.get("RAY_ADDRESS"))


class GaugeListener:
    """Keeps the gauges of a run up to date."""

    def __init__(self, study: str):
        self.gauges = Gauges(study)
        self._expected = 0
        self._stages: dict[str, _Stage] = {}
        self._lock, self._over = threading.Lock(), threading.Event()
        threading.Thread(target=self._refresh, name="raysae-gauges", daemon=True).start()

    def close(self) -> None:
        """Set no gauge from now on."""
        self._over.set()

    def _refresh(self) -> None:
        """Set every gauge again and again: Ray exports only those that were set since the last time."""
        while not self._over.wait(REFRESH_SECONDS):
            with self._lock:
                for name, stage in self._stages.items():
                    self._set(name, stage)

    def hear(self, event: Event) -> None:
        """Note the event, and set the gauges of its stage."""
        with self._lock:
            self._hear(event)

    def _hear(self, event: Event) -> None:
        if isinstance(event, Began):
            self._expected = event.items
        elif isinstance(event, Ended):
            for stage in self._stages.values():
                stage.end()
        match event:
            case Progressed(item, record):
                self._noted(item, "running", record)
            case Committed(item, record):
                self._noted(item, "done", {**record, **record.get("metrics", {})})
            case Failed(item):
                self._noted(item, "failed", {})
            case Stopped(item):
                self._noted(item, "stopped", {})

    def _noted(self, item: Item, state: str, record: Mapping[str, Any]) -> None:
        name = STAGES[item.key.partition("/")[0]]
        stage = self._stages.setdefault(name, _Stage())
        stage.note(item.key, state, record)
        self._set(name, stage)

    def _set(self, name: str, stage: "_Stage") -> None:
        for state in STATES:
            self.gauges.set(ITEMS, stage.count(state), name, state)
        self.gauges.set("raysae_items_expected", self._expected, name)
        for gauge, value in stage.values().items():
            self.gauges.set(gauge, value, name)


class _Stage:
    """The last that is known of the items of a stage."""

    def __init__(self) -> None:
        self.states: dict[str, str] = {}
        self.records: dict[str, Mapping[str, Any]] = {}

    def note(self, key: str, state: str, record: Mapping[str, Any]) -> None:
        """Note an item's state, and its record where it has one."""
        self.states[key] = state
        if record:
            self.records[key] = record

    def end(self) -> None:
        """Nothing runs any more."""
        self.states = {key: s for key, s in self.states.items() if s != "running"}

    def count(self, state: str) -> int:
        """Items in a state."""
        return sum(one == state for one in self.states.values())

    def values(self) -> dict[str, float]:
        """The gauges that follow from the records; one that nothing is known of is left out."""
        variances = self._known("explained_variance")
        running = self._known("tokens_per_second", running=True)
        found = {
            "raysae_best_explained_variance": max(variances, default=math.nan),
            "raysae_explained_variance": sum(variances) / max(len(variances), 1),
            "raysae_tokens": sum(self._known("tokens")),
            "raysae_tokens_per_second": sum(running),
            "raysae_wait_seconds": sum(self._known("wait_seconds")),
            "raysae_memory_bytes": max(self._known("memory_bytes"), default=math.nan),
        }
        if not variances:
            del found["raysae_explained_variance"]
        return {name: value for name, value in found.items() if not math.isnan(value)}

    def _known(self, name: str, running: bool = False) -> list[float]:
        values = (
            record.get(name)
            for key, record in self.records.items()
            if not running or self.states.get(key) == "running"
        )
        return [float(v) for v in values if isinstance(v, int | float) and math.isfinite(v)]
