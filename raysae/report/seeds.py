"""The spread of a site's figures over its seeds, from the SAEs that the run has committed."""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from raysae.errors import UserError
from raysae.records.rows import SiteRow
from raysae.records.run_files import MEMBERS, RunFiles
from raysae.report.atlas_rows import Row
from raysae.sae.checkpoint import CONFIG_FILE, METRICS_FILE
from raysae.storage.files import read_json

Place = tuple[int, str]
"""A layer and a position."""
Spread = Mapping[Place, Mapping[str, tuple[float, float]]]
"""The least and the largest value over the seeds, by place and metric; of places with several seeds."""
NO_SPREAD: Spread = {}


def spread_over_seeds(run: RunFiles, rows: Sequence[SiteRow]) -> Spread:
    """The spread at each of ``rows``, the sites of one hookpoint; empty where each has one seed."""
    found = {}
    for row in rows:
        members = _members(run, row)
        if members is not None:
            found[place_of(row)] = _ranges(_figures(members))
    return found


def _members(run: RunFiles, row: SiteRow) -> Path | None:
    """The folder of the other seeds' SAEs; None where there is none."""
    try:
        folder = run.atlas_site(row.site).with_suffix(MEMBERS)
    except ValueError:  # it names no site
        return None
    return folder if row.done and folder.is_dir() else None


def place_of(row: Row) -> Place:
    """The layer and position of a row."""
    return row["layer"], str(row["position"])


def _figures(members: Path) -> list[Mapping[str, Any]]:
    """The figures of each seed, the first one's own; empty when a file is gone or damaged."""
    try:
        config = read_json(members.with_suffix("") / CONFIG_FILE)
        others = [read_json(file) for file in sorted(members.rglob(METRICS_FILE))]
        return [config["metadata"]["metrics"], *others]
    except (UserError, OSError, LookupError, TypeError):
        return []


def _ranges(figures: Iterable[Mapping[str, Any]]) -> dict[str, tuple[float, float]]:
    values: dict[str, list[float]] = {}
    for one in figures:
        for name, value in one.items():
            if isinstance(value, int | float) and math.isfinite(value):
                values.setdefault(name, []).append(float(value))
    return {name: (min(known), max(known)) for name, known in values.items() if len(known) > 1}
