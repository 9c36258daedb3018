"""The page's section on resources: what the run's records hold of time, speed, memory and disk."""

import os
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raysae.metrics import registered
from raysae.records.folder import RunFolder
from raysae.records.rows import Row
from raysae.records.status import STAGES

PARTS = ("trials", "atlas", "analysis", "controls", "sweet_spot")
"""The folders of a run whose sizes the page tells."""


@dataclass(frozen=True)
class Work:
    """What the trainings of one kind, ``trials`` or ``sites``, took."""

    what: str
    number: int
    figures: list[tuple[str, str]]
    """Names of amounts with their texts."""


@dataclass(frozen=True)
class ResourcesSection:
    """What the page says of a run's cost."""

    times: dict[str, float]
    """Seconds by stage, of stages that have ended."""
    work: list[Work]
    disk: list[tuple[str, int]]
    """Bytes by part of the run folder, and of the store."""

    @property
    def total(self) -> float:
        """Seconds of all stages."""
        return sum(self.times.values())


def resources_of(
    run: RunFolder, store_bytes: int, d_in: int, trials: Sequence[Row], sites: Sequence[Row]
) -> ResourcesSection:
    """What the run took; ``store_bytes`` is the size of the store's files, ``d_in`` a row's width."""
    times = {stage: run.seconds(stage) for stage in STAGES if stage != "report"}
    ended = {stage: seconds for stage, seconds in times.items() if seconds is not None}
    work = [
        _work(what, d_in, rows) for what, rows in (("trials", trials), ("sites", sites)) if rows
    ]
    disk = [("store", store_bytes), *((part, _bytes_below(run.path / part)) for part in PARTS)]
    return ResourcesSection(ended, work, [(name, size) for name, size in disk if size])


def _work(what: str, d_in: int, rows: Sequence[Row]) -> Work:
    figures = [
        ("training tokens, all together", _total(rows, "tokens_trained")),
        ("tokens a second: median (lowest to highest)", _spread(rows, "tokens_per_second")),
        (
            "arithmetic of a dense step at that speed, 10 d_in d_sae a token: median (lowest to highest)",
            _arithmetic(rows, d_in),
        ),
        ("time of one: median (lowest to highest)", _spread(rows, "seconds")),
        ("waiting for data, share of their time", _wait(rows)),
        ("peak memory of a process", _largest(rows, "memory_bytes")),
        ("machines", _names(rows, "host")),
        ("devices", _names(rows, "device")),
    ]
    return Work(what, len(rows), [(name, text) for name, text in figures if text])


def _known(rows: Iterable[Row], metric: str) -> list[Any]:
    return [row[metric] for row in rows if row.get(metric) is not None]


def _total(rows: Sequence[Row], metric: str) -> str:
    values = _known(rows, metric)
    return f"{sum(values):,.0f}" if values else ""


def _spread(rows: Sequence[Row], metric: str) -> str:
    values, text = _known(rows, metric), registered()[metric].text
    if not values:
        return ""
    return f"{text(statistics.median(values))} ({text(min(values))} to {text(max(values))})"


def _arithmetic(rows: Sequence[Row], d_in: int) -> str:
    """What each row's training would compute a second with dense steps; "" where d_sae is not known."""
    pairs = [(row.get("sae.d_sae"), row.get("tokens_per_second")) for row in rows]
    rates = [10e-9 * d_in * d_sae * speed for d_sae, speed in pairs if d_sae and speed]
    if not rates:
        return ""
    return f"{statistics.median(rates):,.2f} GFLOP/s ({min(rates):,.2f} to {max(rates):,.2f})"


def _wait(rows: Sequence[Row]) -> str:
    both = [
        (row["wait_seconds"], row["seconds"])
        for row in rows
        if row.get("wait_seconds") is not None and row.get("seconds")
    ]
    waited, took = (sum(values) for values in zip(*both, strict=True)) if both else (0, 0)
    return f"{waited / took:.1%}" if took else ""


def _largest(rows: Sequence[Row], metric: str) -> str:
    values = _known(rows, metric)
    return registered()[metric].text(max(values)) if values else ""


def _names(rows: Sequence[Row], column: str) -> str:
    return ", ".join(sorted({str(value) for value in _known(rows, column)})[:8])


def _bytes_below(folder: Path) -> int:
    """The size of the files below a folder; 0 where there is none."""
    total, waiting = 0, [str(folder)]
    while waiting:
        try:
            with os.scandir(waiting.pop()) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(entry.path)
                    elif entry.is_file(follow_symlinks=False):
                        total += entry.stat().st_size
        except OSError:  # a folder that is not there, or that is not ours to read
            continue
    return total
